"""Which streams the next segment shows how often: the harder a stream still is, the more of the steps it gets.

Source: UDON's dynamic domain sampling (arXiv 2406.08332), as in its code: a stream's share is its mean teacher loss
over the sum of all streams' means. A stream that was not seen keeps its share, then all are scaled to sum to 1. There
is no temperature, no memory and, by default, no floor. Deviations: the run begins with the configured weights in a
random order (there: round-robin); means are over the steps since the shares were last set (there: since metrics were
last logged); streams that do not feed the objective keep the share of the steps that they were configured with.

Shares are set a few steps before their segment begins, so that its first batches are ready in time. What those last
steps show then counts for the segment after.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elastic.data.config import DataConfig
from elastic.data.feed import Feed
from elastic.data.rows import MAX_BLOCK_STEPS
from elastic.data.weights import Weights
from elastic.errors import ConfigError
from elastic.objectives.base import Terms
from elastic.objectives.distributed import global_sum
from elastic.train.window import rank


@dataclass(frozen=True, kw_only=True, slots=True)
class Balancing:
    """How stream weights follow the training loss, from one segment of the data to the next."""

    term: str = "udon/teacher_ce@raw"
    """The reported term, `objective/term`, that says how hard a stream is. Streams that do not feed its objective keep
    their part of the steps."""
    floor: float = 0.0
    """Least share of each balanced stream among them. Without one, a stream whose share is below one step of a segment
    is not shown again until the others' losses change that."""

    def __post_init__(self) -> None:
        objective, _, term = self.term.partition("/")
        if not objective or not term:
            raise ConfigError("balancing.term", self.term, "must be the name of an objective, a slash, and its term")
        if not 0 <= self.floor < 1:
            raise ConfigError("balancing.floor", self.floor, "must be at least 0 and below 1")

    @property
    def objective(self) -> str:
        """Name of the objective whose term it is."""
        return self.term.partition("/")[0]


def balanced_shares(losses: Sequence[float | None], before: Sequence[float], floor: float) -> tuple[float, ...]:
    """Shares in proportion to the losses; `None` stands for a stream that was not seen and keeps what it had `before`.

    `before` sums to 1, and so does the result.

    Raises:
        ConfigError: a loss is negative.
    """
    seen = [loss for loss in losses if loss is not None]
    if any(loss < 0 for loss in seen):
        raise ConfigError("balancing.term", min(seen), "must not be negative, to be shared out by")
    total = sum(seen)
    if total == 0:
        return tuple(before)
    raw = [share if loss is None else loss / total for loss, share in zip(losses, before, strict=True)]
    spread = 1 - floor * len(raw)
    return tuple(floor + spread * share / sum(raw) for share in raw)


class Balancer:
    """Sums up the term of each stream on one worker, and sets the weights of the next segment for all."""

    def __init__(
        self, config: Balancing, data: DataConfig, balanced: Sequence[int], feed: Feed, device: torch.device
    ) -> None:
        """`balanced` are the places of the streams that report the term; weights go on from those of the feed."""
        self._config, self._balanced, self._feed = config, tuple(balanced), feed
        self._names = [stream.name for stream in data.streams]
        self._segment_steps = data.segment_steps
        # Ahead by what a worker holds ready, a block that is handed on, and one that is being made.
        self._lead = min(data.prefetch_steps + 2 * MAX_BLOCK_STEPS, data.segment_steps // 2)
        self._part = sum(data.weights[place] for place in balanced) / sum(data.weights)
        self._weights: Weights = tuple(weight / sum(data.weights) for weight in data.weights)
        if feed.weights:
            self._weights = feed.weights[max(feed.weights)]
        # Sums and counts of each stream: this worker's since they were last exchanged, and all workers' before that.
        self._mine = torch.zeros(2, len(self._names), dtype=torch.float64, device=device)
        self._window = torch.zeros_like(self._mine)

    def add(self, stream: int, report: Terms) -> None:
        """Take in one step, without waiting for the device; its value is the mean over the granularities.

        What is not finite does not count.

        Raises:
            ConfigError: a balanced stream's step does not report the term.
        """
        if stream not in self._balanced:
            return
        found = [value for name, value in report.items() if name.rpartition("/")[0] == self._config.term]
        if not found:
            prefix = f"{self._config.objective}/"
            known = sorted({name.rpartition("/")[0] for name in report if name.startswith(prefix)})
            raise ConfigError("balancing.term", self._config.term, f"is not reported; {known} are")
        value = torch.stack(found).double().mean()
        finite = value.isfinite()
        self._mine[0, stream] += torch.where(finite, value, 0.0)
        self._mine[1, stream] += finite

    def update(self, step: int) -> None:
        """Set the weights of the next segment, if that is due after this many steps. Every worker calls it together."""
        if (step + self._lead) % self._segment_steps:
            return
        self._exchange()
        sums, counts = self._window.tolist()
        losses = [sums[place] / counts[place] if counts[place] else None for place in self._balanced]
        before = [self._weights[place] / self._part for place in self._balanced]
        weights = list(self._weights)
        for place, share in zip(self._balanced, balanced_shares(losses, before, self._config.floor), strict=True):
            weights[place] = self._part * share
        self._weights = tuple(weights)
        if rank() == 0:
            self._feed.set_weights((step + self._lead) // self._segment_steps, self._weights)
        self._window.zero_()

    def close(self) -> dict[str, float]:
        """`weights/<stream>`, as last set, for the record. Every worker calls it together.

        What was summed up until then is exchanged, so that the worker that saves a checkpoint has it.
        """
        self._exchange()
        return {f"weights/{name}": weight for name, weight in zip(self._names, self._weights, strict=True)}

    def _exchange(self) -> None:
        self._window += global_sum(self._mine)
        self._mine.zero_()

    def state_dict(self) -> dict[str, Any]:
        """What the next weights depend on besides those of the feed; right after `close`."""
        assert not self._mine.any(), "sums are saved once they are exchanged"
        return {"window": self._window.clone()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `saved`."""
        self._window.copy_(saved["window"])
