"""Who is told what a server does: metrics, traces and the autoscaler count from the same two events.

Observers are called on the event loop between requests, so they only count; an observer never waits or raises.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from elastic.serve.engine import Computed, RanBatch, Request


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    request: Request | None
    """None if it could not even be read."""
    computed: Sequence[Computed]
    """One per input; empty if it failed."""
    error: BaseException | None
    """Why it failed, or that its caller left (`asyncio.CancelledError`)."""
    total_ms: float
    """From its arrival to now."""
    slack_ms: float
    """What is left of its budget; negative when it was missed, NaN if the request could not be read."""

    @property
    def met(self) -> bool:
        """Answered inside its budget."""
        return self.error is None and self.slack_ms >= 0


class Observer:
    """Hears of every batch and every request, and does nothing by itself."""

    def batch_ran(self, batch: RanBatch) -> None:
        """The model thread has computed a batch."""

    def request_finished(self, outcome: Outcome) -> None:
        """A request was answered, refused, or given up."""


class Observers(Observer):
    """Tells several."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def batch_ran(self, batch: RanBatch) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.batch_ran(batch)

    def request_finished(self, outcome: Outcome) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.request_finished(outcome)
