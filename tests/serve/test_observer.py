import asyncio
import inspect
import math
from pathlib import Path

import pytest

from elastic import errors
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.errors import DeadlineExceeded, ElasticError, InvalidRequest, Overloaded, SloInfeasible
from elastic.serve.api.service import EmbeddingService
from elastic.serve.config import ServeConfig
from elastic.serve.engine import RanBatch
from elastic.serve.observer import ENDINGS, OUTCOMES, Observer, Observers, Outcome
from elastic.serve.resident import ResidentModel
from tests.serve.conftest import service_of


class Recorder(Observer):
    """Keeps all it hears."""

    def __init__(self) -> None:
        self.batches: list[RanBatch] = []
        self.outcomes: list[Outcome] = []

    def batch_ran(self, batch: RanBatch) -> None:
        self.batches.append(batch)

    def request_finished(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def service(tiny_model: ResidentModel, tiny_run: Path, recorder: Recorder) -> EmbeddingService:
    return service_of(tiny_model, ServeConfig(run=tiny_run), [recorder])


def ask(service: EmbeddingService, texts: list[str], latency_ms: float) -> pb.EmbedReply:
    inputs = [pb.Input(text=text) for text in texts]
    return asyncio.run(service.embed(pb.EmbedRequest(inputs=inputs, slo=pb.Slo(latency_ms=latency_ms)), None))


def test_an_answer_is_heard_with_the_times_of_its_reply(service: EmbeddingService, recorder: Recorder) -> None:
    reply = ask(service, ["a cat", "a house"], 60_000)
    (outcome,) = recorder.outcomes
    assert outcome.met and outcome.request is not None and len(outcome.computed) == 2
    assert (outcome.total_ms, outcome.slack_ms) == (reply.total_ms, reply.slack_ms)


def test_every_batch_is_heard_once(service: EmbeddingService, recorder: Recorder) -> None:
    ask(service, ["a cat", "a house"], 60_000)
    assert sum(len(batch.run.works) for batch in recorder.batches) == 2
    assert all(batch.compute_ms > 0 for batch in recorder.batches)


def test_a_refusal_is_heard_with_its_error(service: EmbeddingService, recorder: Recorder) -> None:
    with pytest.raises(SloInfeasible):
        ask(service, ["a cat"], 2.0)
    (outcome,) = recorder.outcomes
    assert isinstance(outcome.error, SloInfeasible) and not outcome.met and not outcome.computed


def test_a_request_that_cannot_be_read_is_heard_without_one(service: EmbeddingService, recorder: Recorder) -> None:
    with pytest.raises(InvalidRequest):
        ask(service, [], 60_000)
    (outcome,) = recorder.outcomes
    assert outcome.request is None and isinstance(outcome.error, InvalidRequest)


def test_all_observers_hear_the_same(service: EmbeddingService, recorder: Recorder) -> None:
    ask(service, ["a cat"], 60_000)
    first, second = Recorder(), Recorder()
    both = Observers([first, second])
    both.request_finished(recorder.outcomes[0])
    both.batch_ran(recorder.batches[0])
    assert first.outcomes == second.outcomes == recorder.outcomes
    assert first.batches == second.batches == recorder.batches


def ending(error: BaseException | None, slack_ms: float) -> Outcome:
    return Outcome(None, (), error, 10.0, slack_ms)


def test_every_error_class_has_an_outcome() -> None:
    classes = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ElasticError)}
    assert classes <= set(ENDINGS)


@pytest.mark.parametrize(
    ("error", "slack_ms", "name", "counts"),
    [
        (None, 0.0, "met", True),
        (None, -0.1, "late", True),
        (Overloaded("busy", 1.0), 5.0, "refused", True),
        (DeadlineExceeded(5.0, 1.0), -1.0, "expired", True),
        (KeyError("bug"), 5.0, "error", True),
        (SloInfeasible("1 ms", "4 ms", "raise it"), 1.0, "infeasible", False),
        (InvalidRequest("inputs", "is empty"), math.nan, "invalid", False),
        (asyncio.CancelledError(), 5.0, "cancelled", False),
        (asyncio.CancelledError(), -5.0, "abandoned", True),
    ],
)
def test_an_end_has_a_name_and_counts_unless_it_says_nothing_of_the_server(
    error: BaseException | None, slack_ms: float, name: str, counts: bool
) -> None:
    outcome = ending(error, slack_ms)
    assert (outcome.name, outcome.counts) == (name, counts)
    assert outcome.name in OUTCOMES
