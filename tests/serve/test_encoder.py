"""The whole server, as users start it: `elastic serve` in its own process, HAProxy in front, real gRPC."""

import http.client
import io
import time
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from PIL import Image

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceStub
from elastic.client import Client
from elastic.errors import ElasticError, InvalidRequest, Overloaded, RequestTooLarge, SloInfeasible

pytestmark = [pytest.mark.serve, pytest.mark.slow]

RELAXED_MS = 60_000.0


@pytest.fixture
def client(server: str) -> Client:
    return Client(server)


@pytest.fixture
def channel(server: str) -> grpc.Channel:
    return grpc.insecure_channel(server)


def large_png() -> bytes:
    """A real image of 50 megapixels that compresses to little."""
    stream = io.BytesIO()
    Image.new("1", (10_000, 5_000)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(("latency_ms", "granularity"), [(190.0, "S"), (500.0, "M"), (2_000.0, "L"), (20_000.0, "XL")])
def test_the_objective_decides_the_submodel(client: Client, png: bytes, latency_ms: float, granularity: str) -> None:
    (found,) = client.embed(images=[png], latency_slo_ms=latency_ms)
    assert found.granularity == granularity
    assert found.predicted_ms <= latency_ms
    assert found.slo_met
    assert np.linalg.norm(found.values) == pytest.approx(1.0, abs=1e-5)


def test_images_and_texts_are_answered_together_at_the_asked_width(client: Client, png: bytes) -> None:
    found = client.embed(images=[png, png], texts=["a cat"], latency_slo_ms=RELAXED_MS, embed_dim=16)
    assert [item.modality for item in found] == ["image", "image", "text"]
    assert {len(item.values) for item in found} == {16}


def test_a_stream_answers_every_input_and_survives_bad_ones(client: Client, png: bytes) -> None:
    answers = dict(client.embed_stream([png, "a cat", b"junk", png], latency_slo_ms=RELAXED_MS))
    assert sorted(answers) == [0, 1, 2, 3]
    assert isinstance(answers[2], InvalidRequest)
    assert not any(isinstance(answers[position], ElasticError) for position in (0, 1, 3))


BAD_REQUESTS: dict[str, tuple[Callable[[Client], object], type[ElasticError], str]] = {
    "not an image": (lambda c: c.embed(images=[b"hello"]), InvalidRequest, "not a readable image"),
    "wrong content type": (lambda c: c.embed(images=[b"%PDF-1.7"]), InvalidRequest, "send one of PNG, JPEG"),
    "50 megapixels": (lambda c: c.embed(images=[large_png()]), InvalidRequest, "10000 x 5000 pixels"),
    "no items": (lambda c: c.embed(), InvalidRequest, "at least one image or text"),
    "10,000 items": (lambda c: c.embed(texts=["x"] * 10_000), RequestTooLarge, "above the limit of 64"),
    "unknown width": (lambda c: c.embed(texts=["x"], embed_dim=17), InvalidRequest, "8, 16, 32"),
    "100 MB": (lambda c: c.embed(images=[bytes(100_000_000)]), RequestTooLarge, "above the limit of 33554432"),
    "impossible objective": (lambda c: c.embed(texts=["x"], latency_slo_ms=20.0), SloInfeasible, "needs 100.00 ms"),
    "impossible quality": (lambda c: c.embed(texts=["x"], min_quality=0.9), SloInfeasible, "0.600"),
}


@pytest.mark.parametrize("kind", BAD_REQUESTS)
def test_a_bad_request_is_explained_and_harms_nobody(client: Client, png: bytes, kind: str) -> None:
    send, error, words = BAD_REQUESTS[kind]
    with pytest.raises(error, match=words):
        send(client)
    assert len(client.embed(images=[png], latency_slo_ms=RELAXED_MS)) == 1


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.EmbedRequest(inputs=[pb.Input(text="x")], slo=pb.Slo(latency_ms=float("nan"))), "INVALID_ARGUMENT"),
        (pb.EmbedRequest(inputs=[pb.Input(text="x")], slo=pb.Slo(latency_ms=-1.0)), "INVALID_ARGUMENT"),
        (pb.EmbedRequest(inputs=[pb.Input()]), "INVALID_ARGUMENT"),
        (pb.EmbedRequest(inputs=[pb.Input(text="x")] * 10_000), "RESOURCE_EXHAUSTED"),
        (pb.EmbedRequest(inputs=[pb.Input(text="x")], slo=pb.Slo(latency_ms=20.0)), "FAILED_PRECONDITION"),
    ],
)
def test_a_client_without_our_checks_gets_the_status(
    channel: grpc.Channel, request_: pb.EmbedRequest, code: str
) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        EmbeddingServiceStub(channel).Embed(request_, timeout=30)
    assert raised.value.code().name == code  # type: ignore[attr-defined]
    assert not {"Traceback", "/elastic/", "0x"} & set(raised.value.details().split())  # type: ignore[attr-defined]


def test_a_deadline_that_has_just_passed_is_not_computed(channel: grpc.Channel) -> None:
    just_passed = f"{1000 * time.time() - 10:.0f}"
    with pytest.raises(grpc.RpcError) as raised:
        EmbeddingServiceStub(channel).Embed(
            pb.EmbedRequest(inputs=[pb.Input(text="x")]), metadata=[("x-deadline-unix-ms", just_passed)], timeout=30
        )
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]


def test_what_is_not_grpc_does_not_disturb_the_server(server: str, client: Client) -> None:
    connection = http.client.HTTPConnection(server, timeout=10)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        connection.request("POST", "/elastic.v1.EmbeddingService/Embed", b"{}", {"content-type": "application/json"})
        if connection.getresponse().status >= 400:
            raise ConnectionRefusedError
    assert client.info().model_version


def test_inputs_of_one_call_share_a_batch(client: Client, png: bytes) -> None:
    assert {item.batch_size for item in client.embed(images=[png] * 3, latency_slo_ms=RELAXED_MS)} == {3}


def test_a_crowd_is_served_or_told_when_to_come_back(client: Client, png: bytes) -> None:
    # Batches of one are enough for this model as long as it is faster than the server reads the stream.
    answers = [answer for _, answer in client.embed_stream([png] * 200, latency_slo_ms=1_000.0)]
    assert len(answers) == 200
    refusals = [answer for answer in answers if isinstance(answer, ElasticError)]
    assert all(isinstance(refusal, Overloaded) and refusal.retry_after_ms > 0 for refusal in refusals)
    assert len(refusals) < 200


def test_health_reflection_and_info_are_there(channel: grpc.Channel, client: Client) -> None:
    health = HealthStub(channel)
    for service in ("", "elastic.v1.EmbeddingService"):
        assert health.Check(HealthCheckRequest(service=service)).status == HealthCheckResponse.SERVING
    assert next(health.Watch(HealthCheckRequest())).status == HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        health.Check(HealthCheckRequest(service="nobody"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"elastic.v1.EmbeddingService", "grpc.health.v1.Health"} <= set(services)
    assert [item.granularity for item in client.info().submodels][:4] == ["S", "M", "L", "XL"]
