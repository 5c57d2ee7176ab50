"""The one load client: a number of requests through a number of callers that each wait for their answer.

It runs in the benchmark's own process, on one event loop, and so takes a share of the same cores; its CPU time is
measured like a server's. Requests are built before the clock starts, and answers are turned into arrays.
"""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import grpc
import numpy as np
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from benchmarks.server_cost.workload import TOP_QUALITY
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceStub

GENEROUS_SLO_MS = 120_000.0

Ask = Callable[[], Awaitable[object]]
"""Sends the next request and returns its answer."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One closed loop."""

    elapsed_s: float
    latencies_ms: list[float]
    answers: list[object]

    @property
    def per_s(self) -> float:
        """Requests over the time from the first one sent to the last one answered."""
        return len(self.latencies_ms) / self.elapsed_s


async def closed_loop(ask: Ask, num_requests: int, concurrency: int) -> Sent:
    """Send `num_requests`, `concurrency` of them at a time."""
    turns = iter(range(num_requests))
    latencies_ms: list[float] = []
    answers: list[object] = []

    async def caller() -> None:
        for _ in turns:
            start = time.perf_counter()
            answers.append(await ask())
            latencies_ms.append(1e3 * (time.perf_counter() - start))

    begin = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return Sent(time.perf_counter() - begin, latencies_ms, answers)


@asynccontextmanager
async def grpc_embed(port: int, images: Sequence[bytes]) -> AsyncIterator[Ask]:
    """Embed over `elastic.v1`, at the largest submodel."""
    slo = pb.Slo(latency_ms=GENEROUS_SLO_MS, min_quality=TOP_QUALITY)
    requests = itertools.cycle([pb.EmbedRequest(inputs=[pb.Input(image=image)], slo=slo) for image in images])
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        embed = EmbeddingServiceStub(channel).Embed

        async def ask() -> pb.EmbedReply:
            reply: pb.EmbedReply = await embed(next(requests))
            check(np.frombuffer(reply.embeddings[0].values_f32, "<f4"))
            return reply

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

        async def ask() -> HealthCheckResponse:
            return await check_health(HealthCheckRequest())

        yield ask


@asynccontextmanager
async def litserve_embed(port: int, images: Sequence[bytes]) -> AsyncIterator[Ask]:
    """POST /predict."""
    bodies = [json.dumps({"image": base64.b64encode(image).decode()}).encode() for image in images]
    async with _posting(f"http://127.0.0.1:{port}/predict", bodies) as post:
        yield lambda: post(lambda answer: answer["embedding"])


@asynccontextmanager
async def infinity_embed(port: int, images: Sequence[bytes]) -> AsyncIterator[Ask]:
    """POST /embeddings, in the form of OpenAI's API with images as data URIs."""
    common = {"model": "elastic", "modality": "image", "encoding_format": "base64"}
    uris = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in images]
    bodies = [json.dumps(common | {"input": [uri]}).encode() for uri in uris]
    async with _posting(f"http://127.0.0.1:{port}/embeddings", bodies) as post:
        yield lambda: post(lambda answer: answer["data"][0]["embedding"])


@asynccontextmanager
async def _posting(url: str, bodies: Sequence[bytes]) -> AsyncIterator[Callable[..., Awaitable[object]]]:
    turns = itertools.cycle(bodies)
    headers = {"content-type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def post(read: Callable[[dict], str]) -> object:
            async with session.post(url, data=next(turns), headers=headers) as response:
                response.raise_for_status()
                check(np.frombuffer(base64.b64decode(read(await response.json())), "<f4"))
                return None

        yield post


def check(embedding: np.ndarray) -> None:
    """Every answer is a normalised embedding: a server that answers something else is not compared."""
    norm = float(np.linalg.norm(embedding))
    assert embedding.size > 1 and abs(norm - 1) < 1e-3, f"{embedding.size} values of norm {norm}"
