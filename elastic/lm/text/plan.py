"""Which tokens a block shows, as a pure function of (seed, step): nothing is replayed, and no position is kept.

The documents of a split, in an order drawn anew for every epoch, make one endless stream; an epoch ends where the next
begins, so nothing is padded or dropped. Block `g` reads positions `g * size` to `(g + 1) * size`, both included: it
shares one token with its successor, which is the last target of the one and the first input of the other. Neighbouring
blocks of a long document would fill whole batches, so the blocks of every round of `blocks_per_round` are shown in an
order of their own. What an epoch has beyond whole blocks begins the first block of the next round.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from elastic.lm.text.store import TokenStore

# What separates the random choices of one seed from each other.
_PURPOSE_DOCUMENTS, _PURPOSE_BLOCKS = range(2)
_KEPT = 4
"""Orders used last that are kept: a batch reaches into two rounds, and these into two epochs each."""


@dataclass(frozen=True, slots=True)
class _Epoch:
    """The documents of one epoch in their order."""

    ends: Int[np.ndarray, " documents"]
    """Where each ends in the epoch."""
    shifts: Int[np.ndarray, " documents"]
    """From a position in the epoch to the place in the store."""


class BlockPlan:
    """Blocks of a token store, each token of each epoch once as an input and once as a target."""

    def __init__(self, store: TokenStore, block_size: int, seed: int) -> None:
        assert store.num_tokens > 0
        self._store, self._size, self._seed = store, block_size, seed
        self.blocks_per_round = max(1, store.num_tokens // block_size)
        """Whole blocks in an epoch."""
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._rounds: OrderedDict[int, np.ndarray] = OrderedDict()

    def blocks(self, numbers: Int[np.ndarray, " blocks"]) -> Int[np.ndarray, "blocks size_1"]:
        """The tokens of the blocks shown as the `numbers`-th of a run, `block_size + 1` each."""
        rounds, offsets = np.divmod(numbers, self.blocks_per_round)
        places = np.empty_like(numbers)
        for round_ in np.unique(rounds):
            chosen = rounds == round_
            places[chosen] = int(round_) * self.blocks_per_round + self._round(int(round_))[offsets[chosen]]
        return self.read(places[:, None] * self._size + np.arange(self._size + 1))

    def read(self, positions: Int[np.ndarray, "blocks size_1"]) -> Int[np.ndarray, "blocks size_1"]:
        """The tokens at these positions of the endless stream."""
        epochs, offsets = np.divmod(positions, self._store.num_tokens)
        tokens = np.empty(positions.shape, np.int64)
        for number in np.unique(epochs):
            chosen = epochs == number
            epoch, within = self._epoch(int(number)), offsets[chosen]
            documents = np.searchsorted(epoch.ends, within, side="right")
            tokens[chosen] = self._store.tokens[epoch.shifts[documents] + within]
        return tokens

    def _round(self, number: int) -> Int[np.ndarray, " blocks"]:
        if number not in self._rounds:
            self._rounds[number] = self._random(_PURPOSE_BLOCKS, number).permutation(self.blocks_per_round)
            _forget(self._rounds)
        self._rounds.move_to_end(number)
        return self._rounds[number]

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            order = self._random(_PURPOSE_DOCUMENTS, number).permutation(len(self._store))
            begins = np.concatenate([[0], self._store.ends[:-1]])
            ends = np.cumsum((self._store.ends - begins)[order])
            self._epochs[number] = _Epoch(ends, self._store.ends[order] - ends)
            _forget(self._epochs)
        self._epochs.move_to_end(number)
        return self._epochs[number]

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, purpose, number))


def _forget(kept: OrderedDict[int, _Epoch] | OrderedDict[int, np.ndarray]) -> None:
    if len(kept) > _KEPT:
        kept.popitem(last=False)
