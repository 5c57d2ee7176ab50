"""How much arrives, learned from what has arrived. Times are milliseconds on the caller's clock."""

import math
from collections.abc import Iterable

from elastic.serve.batching import Work


class Demand:
    """The recent rate of arrivals and the budget that they come with.

    Every arrival counts with a weight that falls by e in the memory: half a second or four budgets, whichever is
    longer, because a rate that is expected to last for a budget should have been seen for longer than one. A steady
    stream is measured exactly. Budgets are averaged harmonically: the tight ones bind.
    """

    LEAST_MEMORY_MS = 500.0
    MEMORY_BUDGETS = 4.0

    def __init__(self) -> None:
        self._last_ms = -math.inf
        self._count = 0.0
        self._hurry = 0.0
        """The sum of one over the budget, with the same weights."""

    def observe(self, works: Iterable[Work]) -> None:
        """Count arrivals, whether they are accepted or not."""
        for work in works:
            faded = self._fade(work.arrived_ms)
            self._last_ms = max(self._last_ms, work.arrived_ms)
            self._count = self._count * faded + 1.0
            self._hurry = self._hurry * faded + 1.0 / max(work.deadline_ms - work.arrived_ms, 1e-3)

    def rate(self, now_ms: float) -> float:
        """Inputs per millisecond."""
        return self._count * self._fade(now_ms) / self.memory_ms

    @property
    def budget_ms(self) -> float:
        """The typical time from arrival to deadline; infinite before anything has arrived."""
        return self._count / self._hurry if self._hurry else math.inf

    @property
    def memory_ms(self) -> float:
        """Within which an arrival is forgotten by e."""
        return max(self.LEAST_MEMORY_MS, self.MEMORY_BUDGETS * self.budget_ms)

    def _fade(self, now_ms: float) -> float:
        if not self._count:
            return 1.0
        return math.exp(-max(0.0, now_ms - self._last_ms) / self.memory_ms)
