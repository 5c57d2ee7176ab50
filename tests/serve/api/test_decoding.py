"""What a replica is given for the bytes that were sent."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.errors import InvalidRequest
from elastic.serve.api.decoding import parse, parse_stream

CUT_SHORT = pb.EmbedRequest(inputs=[pb.Input(text="a cat")]).SerializeToString()[:-1]
NOT_UTF8 = pb.EmbedRequest(inputs=[pb.Input(text="cat")]).SerializeToString().replace(b"cat", b"\xff\xfe\xfd")


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
