"""What a replica is given for what was sent: by a bare grpc.aio server with all services, and by `parse` alone."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1 import generation_pb2 as generation_pb
from elastic.errors import InvalidRequest
from elastic.serve.api.decoding import (
    add_embedding_service,
    add_generation_service,
    add_health_service,
    parse,
    parse_stream,
)

CUT_SHORT = pb.EmbedRequest(inputs=[pb.Input(text="a cat")]).SerializeToString()[:-1]
NOT_UTF8 = pb.EmbedRequest(inputs=[pb.Input(text="cat")]).SerializeToString().replace(b"cat", b"\xff\xfe\xfd")


async def given(methods: list[str], messages: list[bytes]) -> list[tuple[str, bytes]]:
    """What the methods of a servicer are given when each is sent the messages."""
    seen: list[tuple[str, bytes]] = []

    class Servicer:
        def __getattr__(self, name: str) -> object:
            async def unary(request: bytes, context: object) -> bytes:
                seen.append((name, request))
                return b""

            async def streams(requests: AsyncIterator[bytes], context: object) -> AsyncIterator[bytes]:
                seen.extend([(name, request) async for request in requests])
                yield b""

            async def stream(request: bytes, context: object) -> AsyncIterator[bytes]:
                seen.append((name, request))
                yield b""

            return {"EmbedStream": streams, "Watch": stream, "Generate": stream}.get(name, unary)

    server = grpc.aio.server()
    add_embedding_service(Servicer(), server)
    add_generation_service(Servicer(), server)
    add_health_service(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in methods:
            if method.endswith("Stream"):
                assert [reply async for reply in channel.stream_stream(method)(iter(messages))] == [b""]
            elif method.endswith(("Watch", "Generate")):
                assert [reply async for reply in channel.unary_stream(method)(messages[0])] == [b""]
            else:
                assert await channel.unary_unary(method)(messages[0]) == b""
    await server.stop(None)
    return seen


def test_every_method_of_all_services_is_given_the_bytes_that_were_sent() -> None:
    services = (
        pb.DESCRIPTOR.services_by_name["EmbeddingService"],
        generation_pb.DESCRIPTOR.services_by_name["GenerationService"],
        health_pb2.DESCRIPTOR.services_by_name["Health"],
    )
    names = [(service.full_name, method.name) for service in services for method in service.methods]
    seen = asyncio.run(given([f"/{service}/{name}" for service, name in names], [b"\xff"]))
    assert seen == [(name, b"\xff") for _, name in names]
    assert len(names) == 8


def test_all_messages_of_a_stream_come_as_they_were_sent() -> None:
    seen = asyncio.run(given(["/elastic.v1.EmbeddingService/EmbedStream"], [b"a", b"\xff", b""]))
    assert [message for _, message in seen] == [b"a", b"\xff", b""]


def test_a_message_is_parsed_as_generated_code_would() -> None:
    request = pb.EmbedRequest(inputs=[pb.Input(text="a cat")], slo=pb.Slo(latency_ms=5))
    assert parse(pb.EmbedRequest, request.SerializeToString()) == request


@pytest.mark.parametrize("message", [b"\xff\xff\xff", CUT_SHORT, NOT_UTF8])
def test_a_message_that_does_not_parse_is_the_callers_error(message: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"^message: is not a valid elastic\.v1\.EmbedRequest$"):
        parse(pb.EmbedRequest, message)


def test_a_stream_gives_what_comes_before_its_first_bad_message_and_fails_there() -> None:
    async def sent() -> AsyncIterator[bytes]:
        for message in (pb.EmbedStreamRequest(id=1).SerializeToString(), b"\xff", b""):
            yield message

    async def read() -> list[int]:
        async for message in parse_stream(pb.EmbedStreamRequest, sent()):
            ids.append(message.id)
        return ids

    ids: list[int] = []
    with pytest.raises(InvalidRequest):
        asyncio.run(read())
    assert ids == [1]
