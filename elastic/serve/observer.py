"""Who is told what a server does: metrics, traces and the autoscaler count from the same two events.

Observers are called on the event loop between requests, so they only count; an observer never waits or raises.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from elastic import errors
from elastic.serve.access.gate import Caller
from elastic.serve.engine import Computed, RanBatch, Request

MET, LATE, ERROR, ABANDONED = "met", "late", "error", "abandoned"

ENDINGS: dict[type[BaseException], str] = {
    errors.InvalidRequest: "invalid",
    errors.RequestTooLarge: "invalid",
    errors.SloInfeasible: "infeasible",
    errors.Unauthenticated: "unauthenticated",
    errors.RateLimited: "rate_limited",
    errors.Overloaded: "refused",
    errors.DeadlineExceeded: "expired",
    asyncio.CancelledError: "cancelled",
    errors.ServerUnavailable: "unavailable",
    errors.ConfigError: ERROR,
    errors.DataError: ERROR,
    errors.CheckpointError: ERROR,
    errors.ProfileError: ERROR,
    errors.ElasticError: ERROR,
}
"""How a request that was not answered ended, by its error; what is not here is a fault of the server, too."""

OUTCOMES = (MET, LATE, ABANDONED, *dict.fromkeys(ENDINGS.values()))
"""Every way for a request to end."""

NOT_OURS = frozenset({"invalid", "infeasible", "unauthenticated", "rate_limited", "cancelled"})
"""Ends that say nothing about how well the server keeps objectives: no state of it could have met them."""


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
    caller: Caller | None = None
    """Who knows what was sent beside the message, or at the beginning of its stream; None is this process."""
    key: str | None = None
    """The name of the API key that it was sent with, if one was needed and found."""

    @property
    def met(self) -> bool:
        """Answered inside its budget."""
        return self.error is None and self.slack_ms >= 0

    @property
    def name(self) -> str:
        """One of `OUTCOMES`."""
        if self.error is None:
            return MET if self.met else LATE
        if isinstance(self.error, asyncio.CancelledError) and self.slack_ms < 0:
            return ABANDONED  # its caller waited for as long as it had said
        return ENDINGS.get(type(self.error), ERROR)

    @property
    def counts(self) -> bool:
        """Whether attainment, the share of requests that were met, has it in its denominator."""
        return self.name not in NOT_OURS

    @property
    def last(self) -> Computed:
        """The input whose embedding came last: its times are those of the whole answer."""
        return max(self.computed, key=lambda item: item.queue_ms + item.compute_ms)

    @property
    def metadata(self) -> dict[str, str]:
        """What the caller sent beside its message: gRPC metadata or HTTP headers."""
        return {} if self.caller is None else dict(self.caller.invocation_metadata())


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
