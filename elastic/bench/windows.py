"""Whether a load has come to rest: windows of equal length, and how much the last three differ.

As Triton's perf_analyzer judges it: throughput and tail latency of three windows in a row, each within a tolerance of
their mean. Requests belong to the window in which they ended, so a window is known when it is over.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elastic.bench.load import Outcome, Sample

NUM_ALIKE = 3
"""Windows that have to agree."""


@dataclass(frozen=True, slots=True)
class Window:
    """What ended in a stretch of time."""

    begin_ms: float
    end_ms: float
    ended: int
    """Requests that ended, however they did."""
    throughput: float
    """Answers per second."""
    attainment: float
    """Share of what ended that was answered within its objective; NaN if nothing ended."""
    refused: float
    """Share that was refused; NaN likewise."""
    p50_ms: float
    """Of answers; NaN without any."""
    p99_ms: float


class Windows:
    """Cuts a load into windows while it runs."""

    def __init__(self, begin_ms: float, window_ms: float, tolerance: float) -> None:
        """Prepare.

        Args:
            begin_ms: end of the warm-up; what ended before belongs to no window.
            window_ms: length of each.
            tolerance: largest distance from the mean of three windows, as a share of it, that counts as stable.
        """
        self.closed: list[Window] = []
        self._begin_ms, self._window_ms, self._tolerance = begin_ms, window_ms, tolerance
        self._read = 0
        self._inside: list[Sample] = []

    @property
    def stable(self) -> bool:
        """Whether the last three windows agree."""
        last = self.closed[-NUM_ALIKE:]
        return len(last) == NUM_ALIKE and all(
            _agree([getattr(window, name) for window in last], self._tolerance) for name in ("throughput", "p99_ms")
        )

    def update(self, ended: Sequence[Sample], now_ms: float) -> bool:
        """Close the windows that are over, of requests in the order of their end; true if the last ones agree."""
        while (end_ms := self._begin_ms + self._window_ms) <= now_ms:
            while self._read < len(ended) and ended[self._read].done_ms < end_ms:
                if ended[self._read].done_ms >= self._begin_ms:
                    self._inside.append(ended[self._read])
                self._read += 1
            self.closed.append(_window(self._inside, self._begin_ms, end_ms))
            self._inside.clear()
            self._begin_ms = end_ms
        return self.stable


def _window(samples: Sequence[Sample], begin_ms: float, end_ms: float) -> Window:
    latency_ms = [one.done_ms - one.intended_ms for one in samples if one.outcome == Outcome.ANSWERED]
    met = [one.outcome == Outcome.ANSWERED and one.done_ms - one.intended_ms <= one.slo_ms for one in samples]
    p50, p99 = np.percentile(latency_ms, [50, 99]).tolist() if latency_ms else (float("nan"), float("nan"))
    return Window(
        begin_ms=begin_ms,
        end_ms=end_ms,
        ended=len(samples),
        throughput=1000 * len(latency_ms) / (end_ms - begin_ms),
        attainment=float(np.mean(met)) if met else float("nan"),
        refused=float(np.mean([one.outcome == Outcome.REFUSED for one in samples])) if met else float("nan"),
        p50_ms=p50,
        p99_ms=p99,
    )


def _agree(values: Sequence[float], tolerance: float) -> bool:
    mean = float(np.mean(values))
    return bool(mean > 0 and max(abs(value - mean) for value in values) <= tolerance * mean)
