import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.async_client import AsyncClient
from elastic.client import Client
from elastic.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServerUnavailable, Unauthenticated
from elastic.messages import Embedding
from elastic.quantise import Output

from .fake_service import OVERLOADED, FakeService, end, running

T = TypeVar("T")


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def address(service: FakeService) -> Iterator[str]:
    with running(service) as address:
        yield address


def ask(address: str, call: Callable[[AsyncClient], Awaitable[T]], **settings: object) -> T:
    """What one call answers."""

    async def scenario() -> T:
        async with AsyncClient(address, **settings) as client:  # type: ignore[arg-type]
            return await call(client)

    return asyncio.run(scenario())


async def collect(answers: AsyncIterator[tuple[int, object]]) -> dict[int, object]:
    return {position: answer async for position, answer in answers}


@pytest.mark.parametrize("name", ["__init__", "embed", "embed_stream", "generate", "info", "generation_info"])
def test_every_call_takes_what_that_of_the_client_takes(name: str) -> None:
    def parameters(kind: type) -> list[tuple[str, object]]:
        found = inspect.signature(getattr(kind, name)).parameters.values()
        return [(parameter.name, parameter.default) for parameter in found]

    assert parameters(AsyncClient) == parameters(Client)


def test_an_answer_is_a_numpy_array_with_its_explanation(address: str, service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"file")
    (found,) = ask(
        address,
        lambda client: client.embed(
            texts=["a cat"], images=[tmp_path / "a.png"], latency_slo_ms=60_000.0, outputs=[Output(2, "int8")]
        ),
        api_key="secret",
    )
    assert found.values.tolist() == pytest.approx([0.6, 0.8])
    assert [item.image or item.text for item in service.requests[0].inputs] == [b"file", "a cat"]
    assert list(service.requests[0].outputs) == [pb.Output(embed_dim=2, dtype=pb.DTYPE_INT8)]
    assert service.metadata[0]["authorization"] == "Bearer secret"
    assert float(service.metadata[0]["x-deadline-unix-ms"]) > time.time() * 1000


def test_calls_run_at_once(address: str, service: FakeService) -> None:
    async def both(client: AsyncClient) -> list[list[Embedding]]:
        return await asyncio.gather(client.embed(texts=["a"]), client.embed(texts=["b"]))

    assert len(ask(address, both)) == len(service.requests) == 2


def test_the_servers_error_arrives_with_its_type_and_fields(address: str, service: FakeService) -> None:
    service.respond = end(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", ("elastic-error", OVERLOADED))
    with pytest.raises(Overloaded) as raised:
        ask(address, lambda client: client.embed(texts=["x"]))
    assert (raised.value.reason, raised.value.retry_after_ms) == ("busy", 12.5)
    service.respond = end(grpc.StatusCode.UNAUTHENTICATED, "who are you")
    with pytest.raises(Unauthenticated):
        ask(address, lambda client: client.embed(texts=["x"]))


def test_an_unavailable_server_is_tried_again_and_the_answer_returned(address: str, service: FakeService) -> None:
    def fail_twice(context: grpc.ServicerContext) -> pb.EmbedReply:
        if len(service.requests) < 3:
            return end(grpc.StatusCode.UNAVAILABLE, "restarting")(context)
        return service.succeed(context)

    service.respond = fail_twice
    assert len(ask(address, lambda client: client.embed(texts=["x"], latency_slo_ms=60_000.0))) == 1
    assert len(service.requests) == 3


def test_retries_end_with_the_budget(address: str, service: FakeService) -> None:
    service.respond = end(grpc.StatusCode.UNAVAILABLE, "restarting")
    with pytest.raises(ServerUnavailable):
        ask(address, lambda client: client.embed(texts=["x"], latency_slo_ms=1.0))
    assert len(service.requests) == 1


def test_every_call_has_a_deadline(address: str, service: FakeService) -> None:
    async def all_three(client: AsyncClient) -> None:
        await client.embed(texts=["x"])
        await client.info()
        await collect(client.embed_stream(["x"], timeout_s=50.0))

    ask(address, all_three)
    assert [round(remaining_s, -1) for remaining_s in service.remaining_s] == [30.0, 30.0, 50.0]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_stream_yields_positions_with_embeddings_or_errors(address: str, is_async: bool) -> None:
    async def items() -> AsyncIterator[bytes | Path | str]:
        for item in (b"image", "text", b"image"):
            yield item

    inputs = items() if is_async else [b"image", "text", b"image"]
    answers = ask(address, lambda client: collect(client.embed_stream(inputs)))
    assert isinstance(answers[0], Embedding) and isinstance(answers[2], Embedding)
    assert isinstance(answers[1], Overloaded)


def test_a_stream_has_a_connection_of_its_own(address: str, service: FakeService) -> None:
    async def scenario(client: AsyncClient) -> None:
        await client.embed(texts=["x"])
        await collect(client.embed_stream(["x"]))
        await client.embed(texts=["x"])

    ask(address, scenario)
    before, stream, after = service.peers
    assert before == after != stream


def test_a_stream_that_takes_too_long_ends(address: str, service: FakeService) -> None:
    service.is_silent = True
    with pytest.raises(DeadlineExceeded):
        ask(address, lambda client: collect(client.embed_stream(["x"], timeout_s=0.05)))


def test_a_malformed_objective_is_refused_before_it_is_sent(address: str, service: FakeService) -> None:
    with pytest.raises(InvalidRequest):
        ask(address, lambda client: client.embed(texts=["x"], latency_slo_ms=-1.0))
    with pytest.raises(InvalidRequest):
        ask(address, lambda client: collect(client.embed_stream(["x"], latency_slo_ms=-1.0)))
    assert service.metadata == []


def test_no_server_is_an_error_that_says_how_to_start_one() -> None:
    with pytest.raises(ServerUnavailable, match="elastic serve"):
        ask("127.0.0.1:1", lambda client: client.embed(texts=["x"]))
    with pytest.raises(ServerUnavailable):
        ask("127.0.0.1:1", lambda client: collect(client.embed_stream(["x"])))
