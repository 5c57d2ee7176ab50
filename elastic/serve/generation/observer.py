"""Who is told what happens to sequences: the counterpart of `elastic.serve.observer` for a replica that generates."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from elastic.lm.generate import Step
from elastic.serve.access.gate import Caller
from elastic.serve.generation.engine import Job, Running
from elastic.serve.observer import ABANDONED, ENDINGS, ERROR, LATE, MET, NOT_OURS


@dataclass(frozen=True, slots=True)
class GenerationOutcome:
    """What became of one request."""

    job: Job | None
    """None if it could not even be read."""
    running: Running | None
    """None if it had no place."""
    error: BaseException | None
    """Why it failed, or that its caller left (`asyncio.CancelledError`, `GeneratorExit`)."""
    total_ms: float
    """From its arrival to now."""
    caller: Caller | None = None
    """Who knows what was sent beside the message; None is this process."""
    key: str | None = None
    """The name of the API key that it was sent with, if one was needed and found."""

    @property
    def name(self) -> str:
        """One of `elastic.serve.observer.OUTCOMES`."""
        if self.error is None:
            return MET if self.running is None or self.running.slo_met else LATE
        if isinstance(self.error, asyncio.CancelledError | GeneratorExit):
            is_late = self.job is not None and self.total_ms > self.job.deadline_ms - self.job.arrived_ms
            return ABANDONED if is_late else ENDINGS[asyncio.CancelledError]
        return ENDINGS.get(type(self.error), ERROR)

    @property
    def counts(self) -> bool:
        """Whether attainment, the share of requests that were met, has it in its denominator."""
        return self.name not in NOT_OURS

    @property
    def metadata(self) -> dict[str, str]:
        """What the caller sent beside its message: gRPC metadata or HTTP headers."""
        return {} if self.caller is None else dict(self.caller.invocation_metadata())


class GenerationObserver:
    """Hears of every step and every request, and does nothing by itself."""

    def step_ran(self, running: Running, step: Step, gap_ms: float) -> None:
        """A step brought tokens, so long after those before, or for the first, after the arrival of the request."""

    def request_finished(self, outcome: GenerationOutcome) -> None:
        """A request was answered, refused, or given up."""


class GenerationObservers(GenerationObserver):
    """Tells several."""

    def __init__(self, observers: Sequence[GenerationObserver]) -> None:
        self._observers = tuple(observers)

    def step_ran(self, running: Running, step: Step, gap_ms: float) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.step_ran(running, step, gap_ms)

    def request_finished(self, outcome: GenerationOutcome) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.request_finished(outcome)
