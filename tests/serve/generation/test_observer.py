import asyncio

import pytest

from elastic.errors import DeadlineExceeded, InvalidRequest, Overloaded
from elastic.lm.generate import Step
from elastic.serve.generation.choice import Choice, Option, TokenSlo
from elastic.serve.generation.engine import Running
from elastic.serve.generation.observer import GenerationObserver, GenerationObservers, GenerationOutcome
from elastic.serve.observer import OUTCOMES
from elastic.serve.policy import Limit
from elastic.submodel import Submodel
from tests.serve.generation.conftest import Written, a_job, a_step


def running(slo_ms: float) -> Running:
    """Ten milliseconds per token."""
    choice = Choice(Option(Submodel((8, 8)), "S", None, 1.0), 1.0, Limit.NONE)
    found = Running(a_job(slo=TokenSlo(slo_ms)), choice, Written([]), num_sequences=1)
    for now_ms in (10.0, 20.0):
        found.take(a_step([1]), now_ms)
    return found


def outcome(error: BaseException | None = None, slo_ms: float = 10.0, total_ms: float = 20.0) -> GenerationOutcome:
    return GenerationOutcome(a_job(deadline_ms=100.0), running(slo_ms), error, total_ms)


@pytest.mark.parametrize(
    ("found", "name", "counts"),
    [
        (outcome(), "met", True),
        (outcome(slo_ms=9.0), "late", True),
        (outcome(Overloaded("full", 1.0)), "refused", True),
        (outcome(DeadlineExceeded(1.0, 1.0)), "expired", True),
        (outcome(InvalidRequest("a", "b")), "invalid", False),
        (outcome(asyncio.CancelledError()), "cancelled", False),
        (outcome(GeneratorExit()), "cancelled", False),
        (outcome(GeneratorExit(), total_ms=101.0), "abandoned", True),
        (outcome(ValueError()), "error", True),
    ],
)
def test_every_end_has_a_name_and_counts_or_does_not(found: GenerationOutcome, name: str, counts: bool) -> None:
    assert (found.name, found.counts) == (name, counts)
    assert found.name in OUTCOMES


def test_several_hear_the_same() -> None:
    class Ear(GenerationObserver):
        def __init__(self) -> None:
            self.heard: list[object] = []

        def step_ran(self, running: Running, step: Step, gap_ms: float) -> None:
            self.heard.append((step, gap_ms))

        def request_finished(self, outcome: GenerationOutcome) -> None:
            self.heard.append(outcome)

    ears, step, end = [Ear(), Ear()], a_step([1]), outcome()
    both = GenerationObservers(ears)
    both.step_ran(running(1.0), step, 3.0)
    both.request_finished(end)
    assert [ear.heard for ear in ears] == [[(step, 3.0), end]] * 2
