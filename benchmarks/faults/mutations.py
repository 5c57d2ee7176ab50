"""Requests that are wrong at random: valid messages, mutated from a seed, to every method that ends by itself."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.channel import open_aio_channel

SERVICE, HEALTH = "/elastic.v1.EmbeddingService", "/grpc.health.v1.Health"
CONCURRENCY = 8
TIMEOUT_S = 30.0
CUT_OFF = "Internal error from Core"
"""What grpc.aio's client calls a stream that the server ends, for whatever reason, while the client still sends."""
INTERNALS = re.compile(
    r"Traceback|File \"|\.py\b|site-packages|/home/|/root/|/tmp/|<class|\bobject at|0x[0-9a-f]{6,}|\b\w+Error\b"
    r"|\bray\.|\btorch\b|\bgrpc\._|google\.protobuf|\bNoneType\b",
)
"""What a status message never holds: paths, tracebacks, classes and modules of the server."""


@dataclass(slots=True)
class Answers:
    """What became of many calls."""

    codes: Counter[str] = field(default_factory=Counter)
    """By the name of the gRPC status; CUT_OFF where the client has not learned it."""
    leaks: list[str] = field(default_factory=list)
    """Status messages that show something of the server's inside."""

    def add(self, code: grpc.StatusCode, message: str) -> None:
        """Count one."""
        self.codes["CUT_OFF" if message == CUT_OFF else code.name] += 1
        if INTERNALS.search(message):
            self.leaks.append(message)


def examples(images: Sequence[bytes]) -> list[bytes]:
    """Valid requests, with all that a request can hold."""
    slo = pb.Slo(latency_ms=5_000.0)
    wide = pb.Slo(latency_ms=5_000.0, min_quality=0.1, embed_dim_range=pb.EmbedDimRange(min=8, max=64), priority=3)
    outputs = [pb.Output(embed_dim=16, dtype=pb.DTYPE_INT8), pb.Output(dtype=pb.DTYPE_UBINARY)]
    requests = [
        *(pb.EmbedRequest(inputs=[pb.Input(image=image)], slo=slo) for image in images),
        pb.EmbedRequest(inputs=[pb.Input(text="a cat"), pb.Input(text="two cats")], slo=wide),
        pb.EmbedRequest(inputs=[pb.Input(text="a cat")], slo=slo, outputs=outputs),
        pb.EmbedRequest(inputs=[pb.Input(image_url="https://images.example.com/cat.png")]),
    ]
    return [request.SerializeToString() for request in requests]


def mutated(messages: Sequence[bytes], rng: random.Random) -> bytes:
    """One of the messages after one to four random changes."""
    found = bytearray(rng.choice(messages))
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(found))
        end = min(len(found), start + rng.choice((1, 2, 8, 64)))
        match rng.randrange(6):
            case 0 if found:
                found[rng.randrange(len(found))] ^= 1 << rng.randrange(8)
            case 1:
                del found[start:end]
            case 2:
                found[start:start] = rng.randbytes(rng.choice((1, 4, 64)))
            case 3:
                found[start:start] = found[start:end]
            case 4:
                found[start:end] = b"\xff" * (end - start)
            case _:
                del found[start:]
                found += rng.choice(messages)[rng.randint(0, 64) :]
    return bytes(found)


def calls(count: int, seed: int, messages: Sequence[bytes]) -> Iterator[tuple[str, list[bytes]]]:
    """Methods and the messages to send; all but those of streams take one."""
    rng = random.Random(seed)
    health = HealthCheckRequest(service="elastic.v1.EmbeddingService").SerializeToString()
    for _ in range(count):
        wrong = mutated(messages, rng)
        match rng.randrange(10):
            case 0:
                yield f"{HEALTH}/{rng.choice(('Check', 'List'))}", [mutated([health, b"\x12\x03abc"], rng)]
            case 1:
                yield f"{SERVICE}/Info", [wrong]
            case 2 | 3:
                stream = [pb.EmbedStreamRequest(id=1).SerializeToString() + b"\x12\x00", wrong]
                rng.shuffle(stream)
                yield f"{SERVICE}/EmbedStream", stream
            case _:
                yield f"{SERVICE}/Embed", [wrong]


async def send_mutated(address: str, count: int, seed: int, messages: Sequence[bytes]) -> Answers:
    """What a server answers to `count` of them, some at a time."""
    answers, turns = Answers(), calls(count, seed, messages)

    async def caller(channel: grpc.aio.Channel) -> None:
        for method, sent in turns:
            try:
                if method.endswith("Stream"):
                    replies = channel.stream_stream(method)(iter(sent), timeout=TIMEOUT_S)
                    async for reply in replies:
                        failure = pb.EmbedStreamReply.FromString(reply).failure
                        if INTERNALS.search(failure.message):
                            answers.leaks.append(failure.message)
                else:
                    await channel.unary_unary(method)(sent[0], timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                answers.add(error.code(), error.details() or "")
            else:
                answers.add(grpc.StatusCode.OK, "")

    async with open_aio_channel(address) as channel:
        await asyncio.gather(*(caller(channel) for _ in range(CONCURRENCY)))
    return answers
