"""Keys and values of the tokens that a decoder has read: preallocated slots, rewound instead of copied.

A decoder writes the keys and values of its new tokens into the slots behind `lengths` and then reads every slot up to
each token's own. What stands behind `lengths` is never read, only overwritten. So a sequence is cut back by changing a
number, and the rows of a batch may differ in length.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from elastic.errors import InvalidRequest


class KvCache:
    """Slots for the keys and values of a batch of sequences, in every layer of a decoder."""

    def __init__(self, keys: Float[Tensor, "depth batch heads slots dim"], values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.lengths: list[int] = [0] * keys.shape[1]
        """Tokens that each sequence holds. Plain numbers: deciding by them does not wait for a GPU."""

    @property
    def num_slots(self) -> int:
        """Tokens that a sequence can hold."""
        return self.keys.shape[3]

    @property
    def num_bytes(self) -> int:
        """Memory of all slots."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def is_even(self) -> bool:
        """Whether all sequences are equally long, so that one slice serves all."""
        return min(self.lengths) == max(self.lengths)

    def reserve(self, count: int) -> None:
        """Make sure that `count` more tokens fit.

        Raises:
            InvalidRequest: they do not.
        """
        if max(self.lengths) + count > self.num_slots:
            problem = f"{max(self.lengths)} tokens and {count} more do not fit the cache's {self.num_slots} slots"
            raise InvalidRequest("max_tokens", problem)

    def write(
        self,
        layer: int,
        keys: Float[Tensor, "batch heads new dim"],
        values: Float[Tensor, "batch heads new dim"],
    ) -> tuple[Float[Tensor, "batch heads seen dim"], Float[Tensor, "batch heads seen dim"]]:
        """Store new tokens behind every sequence; returns all slots up to the longest one's last new token."""
        count = keys.shape[2]
        seen = max(self.lengths) + count
        if self.is_even:
            self.keys[layer, :, :, seen - count : seen] = keys
            self.values[layer, :, :, seen - count : seen] = values
        else:
            for row, start in enumerate(self.lengths):
                self.keys[layer, row, :, start : start + count] = keys[row]
                self.values[layer, row, :, start : start + count] = values[row]
        return self.keys[layer, :, :, :seen], self.values[layer, :, :, :seen]

    def visible(self, count: int) -> Bool[Tensor, "batch 1 new seen"] | None:
        """Which slots each of `count` new tokens reads: its own and all before it. `None` stands for all of them."""
        if self.is_even and count == 1:
            return None
        device = self.keys.device
        own = torch.tensor(self.lengths, device=device)[:, None] + torch.arange(count, device=device)  # [batch, new]
        slots = torch.arange(max(self.lengths) + count, device=device)
        return slots <= own[:, None, :, None]

    def advance(self, count: int) -> None:
        """Count `count` written tokens as part of every sequence."""
        self.lengths = [length + count for length in self.lengths]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Cut sequences back to these lengths."""
        assert all(0 <= new <= old for new, old in zip(lengths, self.lengths, strict=True)), (lengths, self.lengths)
        self.lengths = list(lengths)

    def keep(self, rows: Sequence[int]) -> "KvCache":
        """A cache of only these sequences (a copy)."""
        index = torch.tensor(list(rows), device=self.keys.device)
        kept = KvCache(self.keys[:, index], self.values[:, index])
        kept.lengths = [self.lengths[row] for row in rows]
        return kept
