import asyncio
import base64
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx2
import numpy as np
import openai
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
    ServerUnavailable,
    SloInfeasible,
    Unauthenticated,
)
from elastic.serve.api.grpc import Caller
from elastic.serve.api.health import Health
from elastic.serve.api.http import HTTP_STATUS, INTERNAL, error_response, http_app
from elastic.serve.api.service import EmbeddingService
from elastic.serve.config import ServeConfig
from elastic.serve.resident import ResidentModel
from tests.serve.conftest import service_of

RELAXED = {"latency_slo_ms": 60_000.0}


class FakeService(EmbeddingService):
    """Fails with the errors that a test queues, then answers; remembers what it was asked."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.requests: list[pb.EmbedRequest] = []
        self.headers: list[dict[str, str]] = []

    def check(self, caller: Caller) -> None:
        if self.failures and isinstance(self.failures[0], Unauthenticated):
            raise self.failures[0]

    async def embed(self, request: pb.EmbedRequest, caller: Caller | None, *, in_stream: bool = False) -> pb.EmbedReply:
        assert caller is not None
        self.requests.append(request)
        self.headers.append(dict(caller.invocation_metadata()))
        if self.failures:
            raise self.failures.pop(0)
        item = pb.Embedding(values_f32=np.array([0.6, 0.8], "<f4").tobytes(), explanation=pb.Explanation(num_tokens=4))
        return pb.EmbedReply(embeddings=[item])

    def info(self, caller: Caller | None = None) -> pb.InfoReply:
        if caller is not None:
            self.check(caller)
        return pb.InfoReply(model_name="tiny", embed_dims=[1, 2])


async def is_well() -> bool:
    return True


def transport(service: object, canary: Callable[[], Awaitable[bool]] = is_well) -> httpx2.ASGITransport:
    return httpx2.ASGITransport(http_app(service, Health(canary), max_message_bytes=300))  # type: ignore[arg-type]


def send(service: object, method: str, path: str, canary: Callable[[], Awaitable[bool]] = is_well, **arguments: object):  # type: ignore[no-untyped-def]
    async def scenario() -> httpx2.Response:
        async with httpx2.AsyncClient(transport=transport(service, canary), base_url="http://test") as client:
            return await client.request(method, path, **arguments)  # type: ignore[arg-type]

    return asyncio.run(scenario())


def create(service: object, **arguments: object) -> openai.types.CreateEmbeddingResponse:
    """What OpenAI's own client makes of it."""

    async def scenario() -> openai.types.CreateEmbeddingResponse:
        http = httpx2.AsyncClient(transport=transport(service))
        async with openai.AsyncOpenAI(base_url="http://test/v1", api_key="none", http_client=http) as client:
            return await client.embeddings.create(**({"model": "m", "input": "a cat"} | arguments))  # type: ignore[arg-type]

    return asyncio.run(scenario())


def test_a_body_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    monkeypatch.setattr("elastic.serve.api.http.BODY_S", 0.01)
    response = send(FakeService(), "POST", "/v1/embeddings", content=endless())
    assert response.status_code == 400
    assert "did not arrive within 0.01 s" in response.json()["error"]["message"]


def test_every_error_class_is_in_the_table() -> None:
    classes = {kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, ElasticError)}
    assert set(HTTP_STATUS) == classes


@pytest.mark.parametrize(
    ("error", "number", "code"),
    [
        (InvalidRequest("inputs[0].image", "is empty"), 400, "invalid_request"),
        (RequestTooLarge("inputs", 9, 4), 413, "request_too_large"),
        (SloInfeasible("latency_ms=1", "needs 4", "raise it"), 422, "slo_infeasible"),
        (Overloaded("busy", 12.0), 429, "overloaded"),
        (RateLimited("above 5 requests/s", 12.0), 429, "rate_limit_exceeded"),
        (Unauthenticated("no key", "send one"), 401, "invalid_api_key"),
        (ServerUnavailable("a", "b", "c"), 503, "unavailable"),
        (DeadlineExceeded(10.0, 2.0), 504, "deadline_exceeded"),
    ],
)
def test_an_error_is_answered_in_openais_shape(error: ElasticError, number: int, code: str) -> None:
    answer = send(FakeService(error), "POST", "/v1/embeddings", json={"input": "a"})
    told = answer.json()["error"]
    assert (answer.status_code, told["code"]) == (number, code)
    assert set(told) == {"message", "type", "param", "code"}
    assert told["message"].replace("input", "inputs") == str(error) or told["message"] == str(error)


def test_an_error_names_the_field_as_this_api_does() -> None:
    refused = InvalidRequest("slo.embed_dim", "holds none of the trained widths [8]")
    told = send(FakeService(refused), "POST", "/v1/embeddings", json={"input": "a"}).json()["error"]
    assert (told["param"], told["message"]) == ("dimensions", "dimensions: holds none of the trained widths [8]")


@pytest.mark.parametrize("error", [ValueError("/secret/path"), CheckpointError("/secret/path", "damaged", "train")])
def test_internal_errors_are_logged_and_numbered_and_not_described(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = send(FakeService(error), "POST", "/v1/embeddings", json={"input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, INTERNAL.code)
    assert "/secret" not in answer.text and "/secret/path" in caplog.text


def test_an_overload_says_when_to_try_again() -> None:
    headers = error_response(Overloaded("busy", 1_250.0)).headers
    assert (headers["retry-after"], headers["retry-after-ms"], headers["x-should-retry"]) == ("2", "1250", "true")
    assert error_response(DeadlineExceeded(10.0, 2.0)).headers["x-should-retry"] == "false"


@pytest.mark.parametrize(("method", "path", "number"), [("GET", "/nothing", 404), ("GET", "/v1/embeddings", 405)])
def test_what_is_not_here_is_an_error_of_the_same_shape(method: str, path: str, number: int) -> None:
    answer = send(FakeService(), method, path)
    assert answer.status_code == number
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_above_the_limit_is_refused() -> None:
    answer = send(FakeService(), "POST", "/v1/embeddings", json={"input": "x" * 401})
    assert (answer.status_code, answer.json()["error"]["param"]) == (413, "body")


def test_headers_reach_the_service_as_metadata() -> None:
    service = FakeService()
    send(service, "POST", "/v1/embeddings", json={"input": "a"}, headers={"X-Deadline-Unix-Ms": "5"})
    assert service.headers[0]["x-deadline-unix-ms"] == "5"


def test_models_are_listed_and_found_by_name() -> None:
    assert [model["id"] for model in send(FakeService(), "GET", "/v1/models").json()["data"]] == ["tiny"]
    assert send(FakeService(), "GET", "/v1/models/tiny").json()["elastic"]["embed_dims"] == [1, 2]
    assert send(FakeService(), "GET", "/v1/models/other").status_code == 404


def test_health_is_that_of_the_canary() -> None:
    async def is_ill() -> bool:
        return False

    assert send(FakeService(), "GET", "/health").json() == {"status": "serving"}
    assert send(FakeService(), "GET", "/health", is_ill).status_code == 503


def test_openais_client_waits_as_told_and_tries_again() -> None:
    service = FakeService(Overloaded("busy", 1.0), Overloaded("busy", 1.0))
    assert create(service).data[0].embedding == pytest.approx([0.6, 0.8])
    assert len(service.requests) == 3


def test_openais_client_does_not_repeat_what_came_too_late() -> None:
    service = FakeService(DeadlineExceeded(10.0, 2.0))
    with pytest.raises(openai.APIStatusError) as raised:
        create(service)
    assert (raised.value.status_code, len(service.requests)) == (504, 1)


def test_openais_client_reads_its_default_encoding_and_numbers_alike() -> None:
    assert create(FakeService()).data[0].embedding == pytest.approx([0.6, 0.8])
    assert create(FakeService(), encoding_format="float").data[0].embedding == pytest.approx([0.6, 0.8])


def test_an_http_request_and_a_grpc_request_get_the_same_answer(
    tiny_model: ResidentModel, tiny_run: Path, png: bytes
) -> None:
    service = service_of(tiny_model, ServeConfig(run=tiny_run))
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    request = pb.EmbedRequest(
        inputs=[pb.Input(image=png), pb.Input(text="a cat")], slo=pb.Slo(latency_ms=60_000.0, embed_dim=16)
    )

    async def both() -> tuple[pb.EmbedReply, dict]:  # type: ignore[type-arg]
        own = await service.embed(request, None)
        app = http_app(service, Health(service.canary), 1_000_000)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://test") as client:
            body = {"input": [uri, "a cat"], "dimensions": 16} | RELAXED
            return own, (await client.post("/v1/embeddings", json=body)).json()

    own, found = asyncio.run(both())
    for item, datum in zip(own.embeddings, found["data"], strict=True):
        assert datum["embedding"] == pytest.approx(np.frombuffer(item.values_f32, "<f4").tolist(), abs=1e-6)
    # A 16 x 16 image in patches of 8 and one class token; two words of the vocabulary.
    counts = [item.explanation.num_tokens for item in own.embeddings]
    assert counts[0] == 5 and 1 <= counts[1] <= 8
    assert found["usage"]["prompt_tokens"] == sum(counts)


@pytest.fixture
def http(server: str, http_port: int) -> str:
    """Where the real server speaks HTTP."""
    return f"http://127.0.0.1:{http_port}"


@pytest.mark.serve
@pytest.mark.slow
def test_a_real_server_answers_openais_client(http: str, png: bytes) -> None:
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    with openai.OpenAI(base_url=f"{http}/v1", api_key="none") as client:
        found = client.embeddings.create(model="tiny", input=["a cat", uri], dimensions=16, extra_body=RELAXED)
        (model,) = client.models.list()
        with pytest.raises(openai.BadRequestError, match="trained widths"):
            client.embeddings.create(model="tiny", input="a cat", dimensions=9, extra_body=RELAXED)
    norms = [np.linalg.norm(datum.embedding) for datum in found.data]
    assert [len(datum.embedding) for datum in found.data] == [16, 16]
    assert norms == pytest.approx([1.0, 1.0])
    assert found.usage.prompt_tokens == sum(datum.elastic["num_tokens"] for datum in found.data)  # type: ignore[attr-defined]
    assert (model.id, found.model) == ("tiny", "tiny")


@pytest.mark.serve
@pytest.mark.slow
def test_a_real_server_is_healthy_over_http_and_refuses_what_even_an_idle_one_could_not_do(http: str) -> None:
    assert httpx2.get(f"{http}/health").json() == {"status": "serving"}
    answer = httpx2.post(f"{http}/v1/embeddings", json={"input": "a cat", "latency_slo_ms": 1.5})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "slo_infeasible")


def test_a_stranger_learns_that_before_its_body_is_read_and_may_only_ask_for_health() -> None:
    stranger = Unauthenticated("no API key was sent", "pass one")
    sent = send(FakeService(stranger), "POST", "/v1/embeddings", content=b"x" * 10_000)
    assert (sent.status_code, sent.json()["error"]["code"]) == (401, "invalid_api_key")
    for path in ("/v1/models", "/v1/models/tiny"):
        assert send(FakeService(stranger), "GET", path).status_code == 401
    assert send(FakeService(stranger), "GET", "/health").status_code == 200


def test_the_key_of_an_openai_client_is_the_key_of_the_gate() -> None:
    service = FakeService()
    send(service, "POST", "/v1/embeddings", json={"input": "a"}, headers={"Authorization": "Bearer elastic_x"})
    assert service.headers[0]["authorization"] == "Bearer elastic_x"
