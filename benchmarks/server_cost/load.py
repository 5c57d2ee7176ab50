"""The one load client: a number of requests through a number of callers that each wait for their answer.

It runs in the benchmark's own process, on one event loop, and so takes a share of the same cores; its CPU time is
measured like a server's. Requests are built before the clock starts, answers are taken apart while it runs, and what
they hold is checked when it has stopped.
"""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
import grpc
import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from benchmarks.server_cost.workload import TOP_QUALITY
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceStub

GENEROUS_SLO_MS = 120_000.0

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one request."""

    message: object = None
    """As it came, where it holds more than the embeddings."""
    embeddings: Sequence[bytes] = ()
    num_images: int = 0
    """That were sent."""


Ask = Callable[[], Awaitable[Answer]]
"""Sends the next request and returns its answer."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One closed loop."""

    elapsed_s: float
    latencies_ms: list[float]
    answers: list[Answer]

    @property
    def per_s(self) -> float:
        """Requests over the time from the first one sent to the last one answered."""
        return len(self.latencies_ms) / self.elapsed_s


async def closed_loop(ask: Ask, num_requests: int, concurrency: int) -> Sent:
    """Send `num_requests`, `concurrency` of them at a time."""
    turns = iter(range(num_requests))
    latencies_ms: list[float] = []
    answers: list[Answer] = []

    async def caller() -> None:
        for _ in turns:
            start = time.perf_counter()
            answers.append(await ask())
            latencies_ms.append(1e3 * (time.perf_counter() - start))

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    elapsed_s = time.perf_counter() - begin
    for answer in answers:
        check(answer)
    return Sent(elapsed_s, latencies_ms, answers)


@asynccontextmanager
async def grpc_embed(port: int, images: Sequence[bytes], size: int = 1) -> AsyncIterator[Ask]:
    """Embed over `elastic.v1`, at the largest submodel, so many images in a call."""
    slo = pb.Slo(latency_ms=GENEROUS_SLO_MS, min_quality=TOP_QUALITY)
    requests = itertools.cycle(
        [pb.EmbedRequest(inputs=[pb.Input(image=image) for image in some], slo=slo) for some in calls_of(images, size)]
    )
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        embed = EmbeddingServiceStub(channel).Embed

        async def ask() -> Answer:
            reply: pb.EmbedReply = await embed(next(requests))
            return Answer(reply, [embedding.values_f32 for embedding in reply.embeddings], size)

        yield ask


@asynccontextmanager
async def grpc_nothing(port: int) -> AsyncIterator[Ask]:
    """The health check, which costs the server no more than a call and an answer: the way there and back."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        check_health = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )

        async def ask() -> Answer:
            return Answer(await check_health(HealthCheckRequest()))

        yield ask


@asynccontextmanager
async def litserve_embed(port: int, images: Sequence[bytes], size: int = 1) -> AsyncIterator[Ask]:
    """POST /predict, which takes one image."""
    assert size == 1
    bodies = [json.dumps({"image": base64.b64encode(image).decode()}).encode() for image in images]
    async with _posting(f"http://127.0.0.1:{port}/predict", bodies) as post:
        yield lambda: post(lambda answer: [answer["embedding"]])


@asynccontextmanager
async def infinity_embed(port: int, images: Sequence[bytes], size: int = 1) -> AsyncIterator[Ask]:
    """POST /embeddings, in the form of OpenAI's API with images as data URIs."""
    common = {"model": "elastic", "modality": "image", "encoding_format": "base64"}
    uris = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images]
    bodies = [json.dumps(common | {"input": some}).encode() for some in calls_of(uris, size)]
    async with _posting(f"http://127.0.0.1:{port}/embeddings", bodies, size) as post:
        yield lambda: post(lambda answer: [row["embedding"] for row in answer["data"]])


@asynccontextmanager
async def _posting(url: str, bodies: Sequence[bytes], size: int = 1) -> AsyncIterator[Callable[..., Awaitable[Answer]]]:
    turns = itertools.cycle(bodies)
    headers = {"content-type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def post(read: Callable[[dict], list[str]]) -> Answer:
            async with session.post(url, data=next(turns), headers=headers) as response:
                response.raise_for_status()
                encoded = read(await response.json())
                return Answer(embeddings=[base64.b64decode(text) for text in encoded], num_images=size)

        yield post


def calls_of(items: Sequence[Item], size: int) -> list[list[Item]]:
    """As many calls as there are items, each of the next `size` of them, round and round."""
    return [[items[(begin + offset) % len(items)] for offset in range(size)] for begin in range(len(items))]


def check(answer: Answer) -> None:
    """It has a normalised embedding for each image: a server that answers otherwise is not compared."""
    if not answer.num_images:
        return
    embeddings = np.stack([np.frombuffer(embedding, "<f4") for embedding in answer.embeddings])
    assert embeddings.shape[0] == answer.num_images and embeddings.shape[1] > 1, embeddings.shape
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-3), "not normalised"
