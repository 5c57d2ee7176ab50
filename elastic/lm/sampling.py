"""From logits to the distribution a token is drawn from, and from that to a token.

Warping has the order and the meaning of transformers' `TemperatureLogitsWarper`, `TopKLogitsWarper` and
`TopPLogitsWarper`. Randomness comes in as numbers in [0, 1) from outside, which belong to a place of a sequence: what
it draws does not depend on who is beside it in a batch, and a test can go through all that may be drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from elastic.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How a next token is chosen from logits: warped by temperature, then top-k, then top-p; or the best one."""

    temperature: float = 0.0
    """Logits are divided by it; 0 is greedy: the most probable token, always."""
    top_k: int = 0
    """Only the k most probable tokens (and ties with the last of them); 0 is all."""
    top_p: float = 1.0
    """Only the most probable tokens that together reach this probability, at least one; 1 is all."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError("temperature", self.temperature, "must be 0 (greedy) or a positive, finite number")
        if self.top_k < 0:
            raise ConfigError("top_k", self.top_k, "must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", self.top_p, "must be above 0 and at most 1")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.temperature == 0

    def probabilities(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
        """The distribution that the next token is drawn from, in float64; greedy, all of it on the best token."""
        if self.is_greedy:
            best = logits.argmax(-1, keepdim=True)
            return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, best, 1.0)
        logits = logits.float() / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            logits = _keep_most_probable(logits, self.top_p)
        return logits.softmax(-1, dtype=torch.float64)


def _keep_most_probable(logits: Float[Tensor, "*batch vocab"], top_p: float) -> Float[Tensor, "*batch vocab"]:
    ascending, order = logits.sort(-1)
    is_left_out = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    is_left_out[..., -1] = False
    return logits.masked_fill(is_left_out.scatter(-1, order, is_left_out), -torch.inf)


def draw(probabilities: Float[Tensor, "*batch vocab"], chances: Float[Tensor, "*batch"]) -> Int[Tensor, "*batch"]:
    """The token at which the cumulative distribution passes each chance in [0, 1); never one of probability 0."""
    cumulative = probabilities.double().cumsum(-1)
    total = cumulative[..., -1:]
    # Rounding must not lift a chance onto the total, which no token passes.
    reached = torch.minimum(chances.double()[..., None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, reached, right=True).squeeze(-1)


class Chances:
    """Numbers in [0, 1) that decide on the tokens of each sequence: three for each place, whenever that is looked at.

    One draws the draft's token of that place, one decides whether it stands, one draws the target's own. Whether a
    place is reached again is decided by earlier places alone, so that it may then be decided by the same numbers.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._device = device
        self._streams = [np.random.default_rng(seed) for seed in seeds]
        self._taken = [np.empty((0, 3)) for _ in seeds]

    def take(self, starts: Sequence[int], count: int) -> Float[Tensor, "batch count 3"]:
        """Those of `count` places from each sequence's start on, in float64."""
        rows = []
        for row, start in enumerate(starts):
            missing = max(0, start + count - len(self._taken[row]))
            self._taken[row] = np.concatenate([self._taken[row], self._streams[row].random((missing, 3))])
            rows.append(self._taken[row][start : start + count])
        return torch.from_numpy(np.stack(rows)).to(self._device)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with only these sequences."""
        self._streams = [self._streams[row] for row in rows]
        self._taken = [self._taken[row] for row in rows]
