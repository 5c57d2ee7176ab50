import asyncio
import inspect
import json
import logging
import math
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest

from elastic import errors
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.errors import (
    CheckpointError,
    DeadlineExceeded,
    ElasticError,
    InvalidRequest,
    Overloaded,
    RateLimited,
    RequestTooLarge,
    SloInfeasible,
    Unauthenticated,
)
from elastic.serve.api.grpc import (
    STATUS,
    Limits,
    answer,
    answer_stream,
    embed_reply,
    read_contents,
    read_slo,
    remaining_ms,
    status_of,
)
from elastic.serve.batching import Front
from elastic.serve.engine import Computed
from elastic.serve.policy import Limit
from elastic.submodel import Slo

LIMITS = Limits(max_items_per_call=4, default_latency_ms=250.0)


class FakeContext:
    def __init__(self, *metadata: tuple[str, str]) -> None:
        self.metadata = metadata
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing: list[tuple[str, str]] = []

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        self.trailing = trailing_metadata

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self.metadata

    def peer(self) -> str:
        return "ipv4:127.0.0.1:40000"


def request(**slo: object) -> pb.EmbedRequest:
    return pb.EmbedRequest(inputs=[pb.Input(text="a cat")], slo=pb.Slo(**slo))  # type: ignore[arg-type]


def test_every_error_class_is_in_the_table() -> None:
    classes = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ElasticError)}
    assert set(STATUS) == classes


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("inputs", "is empty"), grpc.StatusCode.INVALID_ARGUMENT),
        (RequestTooLarge("inputs", 9, 4), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Overloaded("busy", 12.0), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (RateLimited("key 'a' is above 1 requests/s", 500.0), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Unauthenticated("no API key was sent", "pass one"), grpc.StatusCode.UNAUTHENTICATED),
        (SloInfeasible("latency_ms=1", "needs 4", "raise it"), grpc.StatusCode.FAILED_PRECONDITION),
        (DeadlineExceeded(10.0, 2.0), grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_a_caller_learns_what_concerns_it(error: ElasticError, code: grpc.StatusCode) -> None:
    status = status_of(error)
    assert (status.code, status.message) == (code, str(error))
    sent = json.loads(status.error_json)
    assert getattr(errors, sent["type"])(*sent["fields"]).args == error.args


@pytest.mark.parametrize(
    "error", [ValueError("/secret/path"), CheckpointError("/secret/path", "damaged", "train"), KeyError("/secret/path")]
)
def test_internal_errors_are_logged_and_numbered_and_not_described(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        status = status_of(error)
    assert status.code is grpc.StatusCode.INTERNAL
    assert "/secret" not in status.message + status.error_json
    number = status.message.split()[2].rstrip(";")
    assert number in caplog.text and "/secret/path" in caplog.text


def test_an_overload_carries_its_retry_hint_in_the_trailing_metadata() -> None:
    async def refuse() -> pb.EmbedReply:
        raise Overloaded("busy", 12.4)

    context = FakeContext()
    reply = asyncio.run(answer(context, pb.EmbedReply, refuse()))
    assert (context.code, reply) == (grpc.StatusCode.RESOURCE_EXHAUSTED, pb.EmbedReply())
    assert ("retry-after-ms", "12") in context.trailing


def test_a_stream_that_fails_keeps_its_replies_and_ends_with_the_status() -> None:
    async def replies() -> AsyncIterator[pb.EmbedStreamReply]:
        yield pb.EmbedStreamReply(id=1)
        raise Unauthenticated("no API key was sent", "pass one")

    async def collect(context: FakeContext) -> list[int]:
        return [reply.id async for reply in answer_stream(context, replies())]

    context = FakeContext()
    assert asyncio.run(collect(context)) == [1]
    assert context.code is grpc.StatusCode.UNAUTHENTICATED
    assert "Unauthenticated" in dict(context.trailing)["elastic-error"]


def test_a_reply_passes_unchanged() -> None:
    async def reply() -> pb.EmbedReply:
        return pb.EmbedReply(model_version="v")

    context = FakeContext()
    assert asyncio.run(answer(context, pb.EmbedReply, reply())).model_version == "v"
    assert context.code is None


def test_a_cancelled_call_stays_cancelled() -> None:
    async def leave() -> pb.EmbedReply:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(answer(FakeContext(), pb.EmbedReply, leave()))


def test_long_messages_fit_into_metadata() -> None:
    status = status_of(InvalidRequest("inputs", "x" * 100_000))
    assert len(status.message) + len(status.error_json) < 4_000


def test_contents_are_bytes_and_texts_in_order() -> None:
    message = pb.EmbedRequest(inputs=[pb.Input(text="a"), pb.Input(image=b"b")])
    assert read_contents(message, LIMITS) == ["a", b"b"]


def test_no_inputs_too_many_and_one_without_content_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="is empty"):
        read_contents(pb.EmbedRequest(), LIMITS)
    with pytest.raises(RequestTooLarge, match="5 is above the limit of 4"):
        read_contents(pb.EmbedRequest(inputs=[pb.Input(text="a")] * 5), LIMITS)
    with pytest.raises(InvalidRequest, match=r"inputs\[1\]"):
        read_contents(pb.EmbedRequest(inputs=[pb.Input(text="a"), pb.Input()]), LIMITS)


@pytest.mark.parametrize("latency_ms", [math.nan, math.inf, -math.inf, -1.0])
def test_a_latency_that_is_no_budget_is_refused(latency_ms: float) -> None:
    with pytest.raises(InvalidRequest, match=r"slo.latency_ms"):
        read_slo(request(latency_ms=latency_ms), LIMITS)


def test_a_request_without_an_objective_gets_the_default() -> None:
    assert read_slo(pb.EmbedRequest(), LIMITS) == Slo(latency_ms=250.0)


def test_every_field_of_an_objective_is_read() -> None:
    exact = read_slo(request(latency_ms=5.0, min_quality=0.0, embed_dim=16, priority=-2), LIMITS)
    assert exact == Slo(latency_ms=5.0, min_quality=0.0, embed_dim=16, priority=-2)
    ranged = read_slo(request(embed_dim_range=pb.EmbedDimRange(min=0, max=64)), LIMITS)
    assert ranged == Slo(latency_ms=250.0, max_embed_dim=64)


@pytest.mark.parametrize(
    "fields", [{"embed_dim": 0}, {"min_quality": 1.5}, {"embed_dim_range": pb.EmbedDimRange(min=64, max=16)}]
)
def test_a_contradictory_objective_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest):
        read_slo(request(**fields), LIMITS)


def test_the_clients_absolute_deadline_tightens_the_budget_and_never_widens_it() -> None:
    def now() -> float:
        return 1_000.0

    assert remaining_ms(FakeContext(), 50.0, now) == 50.0
    assert remaining_ms(FakeContext(("x-deadline-unix-ms", "1030.5")), 50.0, now) == 30.5
    assert remaining_ms(FakeContext(("x-deadline-unix-ms", "9999")), 50.0, now) == 50.0
    assert remaining_ms(FakeContext(("x-deadline-unix-ms", "990")), 50.0, now) == -10.0


def test_a_deadline_by_which_nobody_waits_any_more_is_that_of_another_clock() -> None:
    now = lambda: 1_000_000.0  # noqa: E731
    assert remaining_ms(FakeContext(("x-deadline-unix-ms", "999_001")), 50.0, now) == -999.0
    assert remaining_ms(FakeContext(("x-deadline-unix-ms", "998_999")), 50.0, now) == 50.0


@pytest.mark.parametrize("value", ["soon", "nan", "inf"])
def test_a_deadline_that_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="x-deadline-unix-ms"):
        remaining_ms(FakeContext(("x-deadline-unix-ms", value)), 50.0)


def test_a_reply_says_what_ran_and_whether_it_was_in_time(front: Front) -> None:
    whole = np.array([3.0, 4.0, 100.0], np.float32)
    computed = Computed(whole, 2, "image", front.levels[1], 0.4, 1.0, 8.5, 8.0, 2.0, 3, Limit.DEADLINE)
    reply = embed_reply([computed], (), "abc", total_ms=12.0, slack_ms=-2.0)
    why = reply.embeddings[0].explanation
    assert np.frombuffer(reply.embeddings[0].values_f32, "<f4") == pytest.approx([0.6, 0.8])
    assert (why.granularity, why.submodel, why.embed_dim, why.batch_size) == ("M", "ffn=32x2", 2, 3)
    assert (why.limited_by, why.modality) == (pb.LIMIT_DEADLINE, pb.MODALITY_IMAGE)
    assert not reply.slo_met
