"""Who is given what was sent, and what becomes of the reply: by grpc.aio servers, and by Serve's kind of one."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1 import generation_pb2 as generation_pb
from elastic.serve.api import services
from elastic.serve.api.services import (
    add_embedding_service,
    add_generation_service,
    add_health_service,
    answer_here,
)

# Of Serve's own settings, when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`")

REPLY = pb.InfoReply(model_name="cat")
SERVICES = (
    pb.DESCRIPTOR.services_by_name["EmbeddingService"],
    generation_pb.DESCRIPTOR.services_by_name["GenerationService"],
    health_pb2.DESCRIPTOR.services_by_name["Health"],
)
METHODS = [(f"/{service.full_name}/{method.name}", method.name) for service in SERVICES for method in service.methods]


class Servicer:
    """Has every method, remembers what it was given, and always replies the same."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes]] = []

    def __getattr__(self, name: str) -> object:
        async def unary(request: bytes, context: object) -> pb.InfoReply:
            self.seen.append((name, request))
            return REPLY

        async def streams(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[pb.InfoReply]:
            self.seen.extend([(name, request) async for request in requests])
            yield REPLY

        async def stream(request: bytes, context: object) -> AsyncIterator[pb.InfoReply]:
            self.seen.append((name, request))
            yield REPLY

        return {"EmbedStream": streams, "Watch": stream, "Generate": stream}.get(name, unary)


@pytest.fixture(autouse=True)
def nobody_is_here() -> Iterator[None]:
    """This process is no replica's, before a test and after it."""
    services._here.clear()
    yield
    services._here.clear()


async def replies(server: grpc.aio.Server, servicer: object, method: str, messages: list[bytes]) -> list[bytes]:
    """What a call to a method of `servicer` brings back."""
    add_embedding_service(servicer, server)
    add_generation_service(servicer, server)
    add_health_service(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            if method.endswith("Stream"):
                return [reply async for reply in channel.stream_stream(method)(iter(messages))]
            if method.endswith(("Watch", "Generate")):
                return [reply async for reply in channel.unary_stream(method)(messages[0])]
            return [await channel.unary_unary(method)(messages[0])]
    finally:
        await server.stop(None)


@pytest.mark.parametrize(("method", "name"), METHODS)
def test_every_method_is_given_the_bytes_that_were_sent(method: str, name: str) -> None:
    async def call() -> list[bytes]:
        return await replies(grpc.aio.server(), servicer, method, [b"\xff"])

    servicer = Servicer()
    assert asyncio.run(call()) == [REPLY.SerializeToString()]
    assert servicer.seen == [(name, b"\xff")]
    assert len(METHODS) == 8


def test_all_messages_of_a_stream_come_as_they_were_sent() -> None:
    async def call() -> list[bytes]:
        method = "/elastic.v1.EmbeddingService/EmbedStream"
        return await replies(grpc.aio.server(), servicer, method, [b"a", b"\xff", b""])

    servicer = Servicer()
    asyncio.run(call())
    assert [message for _, message in servicer.seen] == [b"a", b"\xff", b""]


def serves_server(seen: list[str]) -> grpc.aio.Server:
    """A server as Serve makes them; in place of Serve's handling of requests it remembers them, and answers none."""
    from ray.serve._private.grpc_util import gRPCGenericServer

    def make(service_method: str, streaming_type: object) -> object:
        async def unary(request: bytes, context: object) -> bytes:
            seen.append(service_method)
            return b""

        async def streaming(request: object, context: object) -> AsyncIterator[bytes]:
            seen.append(service_method)
            return
            yield

        return streaming if str(streaming_type).lower().endswith("stream") else unary

    return gRPCGenericServer(make)


@pytest.mark.parametrize(("method", "name"), METHODS)
def test_in_a_replica_its_own_methods_answer_the_calls_to_serves_server(method: str, name: str) -> None:
    async def call() -> list[bytes]:
        return await replies(serves_server(way), stand_in, method, [b"\xff"])

    way: list[str] = []
    replica, stand_in = Servicer(), Servicer()
    answer_here(replica)
    assert asyncio.run(call()) == [REPLY.SerializeToString()]
    assert (replica.seen, stand_in.seen, way) == ([(name, b"\xff")], [], [])


def test_servers_of_this_process_that_know_no_such_services_are_left_to_their_own_way() -> None:
    async def call() -> list[bytes]:
        return await replies(grpc.aio.server(), servicer, "/elastic.v1.EmbeddingService/Info", [b"\xff"])

    replica, servicer = Servicer(), Servicer()
    answer_here(replica)
    asyncio.run(call())
    assert (replica.seen, servicer.seen) == ([], [("Info", b"\xff")])


@pytest.mark.parametrize("method", ["/elastic.v1.EmbeddingService/Embed", "/grpc.health.v1.Health/Watch"])
def test_elsewhere_calls_take_serves_way(method: str) -> None:
    async def call() -> None:
        await replies(serves_server(way), stand_in, method, [b"\xff"])

    way: list[str] = []
    stand_in = Servicer()
    asyncio.run(call())
    assert (stand_in.seen, way) == ([], [method])
