"""Rounds of speculative decoding: draft some tokens, verify them all in one pass, keep what stands and one more.

The cache holds every token of a sequence but the last, which is pending: it is the first that the next pass reads. A
draft writes behind the sequences, verification writes over that, and then the sequences grow by what was accepted. A
round without drafted tokens is a step of plain decoding.

Source: Leviathan et al. (arXiv 2211.17192) algorithm 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elastic.lm.acceptance import Accepted, accept_greedy, accept_sampled
from elastic.lm.drafts import Draft
from elastic.lm.sampling import Chances, Sampling, draw
from elastic.model.cache import KvCache
from elastic.model.reader import Reader


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one round brought to each sequence of the batch."""

    tokens: list[list[int]]
    """The accepted draft tokens and the target's own behind them."""
    num_accepted: list[int]
    """Draft tokens among them."""
    draft_s: float
    """Time spent on drafting, of one round of all sequences."""


class Rounds:
    """Some sequences in the middle of being continued."""

    def __init__(
        self,
        target: Reader,
        draft: Draft | None,
        cache: KvCache,
        pending: Int[Tensor, "batch 1"],
        sampling: Sampling,
        chances: Chances,
        clock: Callable[[], float],
    ) -> None:
        """`cache` holds of each sequence all but the pending token."""
        self.cache = cache
        self._target, self._draft, self._pending = target, draft, pending
        self._sampling, self._chances, self._clock = sampling, chances, clock
        self._num_given = [0] * len(pending)

    def run(self, gamma: int, most: Sequence[int] | None = None) -> Round:
        """One round with `gamma` drafted tokens; needs `gamma + 1` free slots.

        Of each sequence at most `most` drafted ones count, all if left out: near its end, what a sequence draws is then
        not decided by how far the others of the batch are.
        """
        cache, starts, begin_s = self.cache, self.cache.lengths, self._clock()
        chances = None if self._sampling.is_greedy else self._chances.take(self._num_given, gamma + 1)
        tokens, distributions = self._propose(gamma, chances)
        cache.rewind(starts)
        draft_s = self._clock() - begin_s if gamma else 0.0
        if self._draft is None or not gamma:
            logits = self._target(tokens, cache)
        else:
            logits = self._draft.verify(self._target, tokens, cache)
        limits = torch.tensor([gamma] * len(tokens) if most is None else most, device=tokens.device).clamp(max=gamma)
        accepted = self._accept(tokens[:, 1:], distributions, logits, chances, limits)
        if self._draft is not None:
            self._draft.settle(tokens, accepted.counts)
        self._pending = accepted.following[:, None]
        # One transfer from the device, which also waits for it.
        rows = torch.cat([accepted.counts[:, None], tokens[:, 1:], self._pending], dim=1).tolist()
        counts = [row[0] for row in rows]
        cache.advance(gamma + 1)
        cache.rewind([start + count + 1 for start, count in zip(starts, counts, strict=True)])
        self._num_given = [given + count + 1 for given, count in zip(self._num_given, counts, strict=True)]
        new = [[*row[1 : 1 + count], row[-1]] for row, count in zip(rows, counts, strict=True)]
        return Round(tokens=new, num_accepted=counts, draft_s=draft_s)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with only these sequences."""
        self.cache, self._pending = self.cache.keep(rows), self._pending[list(rows)]
        self._chances.keep(rows)
        self._num_given = [self._num_given[row] for row in rows]
        if self._draft is not None:
            self._draft.keep(rows)

    def _propose(
        self, gamma: int, chances: Float[Tensor, "batch gamma_and_one 3"] | None
    ) -> tuple[Int[Tensor, "batch gamma_and_one"], Float[Tensor, "batch gamma vocab"] | None]:
        """The pending token and those drafted behind it; if they were drawn, from which distributions."""
        tokens, distributions = [self._pending], []
        for position in range(gamma):
            assert self._draft is not None, "tokens are drafted only by a draft"
            logits = self._draft.step(tokens[-1], self.cache)
            self.cache.advance(1)
            if chances is None:
                words = logits.argmax(-1)
            else:
                probabilities = self._sampling.probabilities(logits)
                words = draw(probabilities, chances[:, position, 0])
                distributions.append(self._draft.spread(probabilities))
            tokens.append(self._draft.tokens(words)[:, None])
        return torch.cat(tokens, dim=1), torch.stack(distributions, dim=1) if distributions else None

    def _accept(
        self,
        drafted: Int[Tensor, "batch gamma"],
        distributions: Float[Tensor, "batch gamma vocab"] | None,
        logits: Float[Tensor, "batch gamma_and_one vocab"],
        chances: Float[Tensor, "batch gamma_and_one 3"] | None,
        most: Int[Tensor, " batch"],
    ) -> Accepted:
        if chances is None:
            return accept_greedy(drafted, logits.argmax(-1), most)
        target = self._sampling.probabilities(logits)
        draft = target[:, :-1] if distributions is None else distributions  # of no tokens, if none were drafted
        return accept_sampled(drafted, draft, target, chances[..., 1], chances[..., 2], most)
