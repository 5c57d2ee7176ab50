"""Ten times what a server can do, for a minute: what it refuses, what it uses, and how soon it is itself again."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import numpy as np

from benchmarks.serving.processes import REPLICA, Sampler
from benchmarks.serving.server import Running
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.bench.load import Load
from elastic.bench.send import send
from elastic.bench.summary import summarise
from elastic.bench.windows import Window, Windows
from elastic.channel import open_aio_channel
from elastic.simulate.trace import poisson

FACTOR = 10
"""Inputs of one request, sent as often as the server can answer requests of one: the generator shares its cores."""
QUIET_SHARE = 0.3
"""Of the capacity, before and after."""
SLO_MS = 100.0
WINDOW_MS = 500.0
NUM_NORMAL = 3
"""Windows in a row that have to be as before."""
SLOWER = 1.5
"""How much above the highest p99 of all windows before still counts as normal."""


@dataclass(frozen=True, slots=True)
class Flood:
    """What was sent, and how it ended."""

    inputs_per_s: float
    codes: Counter[str]
    """Requests by the name of the gRPC status."""


def overload(server: Running, contents: Sequence[bytes | str], flood_s: float) -> dict[str, object]:
    """Quiet, flooded, quiet again."""
    capacity = _capacity(server.address, contents)
    with Sampler(server.pid, 0.25) as memory:
        before = _quiet(server.address, contents, QUIET_SHARE * capacity, 15.0)
        num_before = len(memory.samples)
        sent = asyncio.run(flood(server.address, contents, capacity, flood_s))
        num_flooded = len(memory.samples)
        after = _quiet(server.address, contents, QUIET_SHARE * capacity, 15.0)
    mib = memory.of(REPLICA)
    return {
        "capacity_per_s": capacity,
        "flood_s": flood_s,
        "inputs_per_s": sent.inputs_per_s,
        "times_capacity": sent.inputs_per_s / capacity,
        "codes": dict(sent.codes),
        "recovery_s": recovery_s(before, after),
        "attainment_before": float(np.mean([window.attainment for window in before])),
        "attainment_after": float(np.mean([window.attainment for window in after[-10:]])),
        "p99_ms_before": float(np.median([window.p99_ms for window in before])),
        "p99_ms_after": float(np.median([window.p99_ms for window in after[-10:]])),
        "replica_mib": {
            "before": mib[num_before - 1],
            "peak": max(mib[num_before - 1 : num_flooded]),
            "after": mib[-1],
        },
    }


def recovery_s(before: Sequence[Window], after: Sequence[Window]) -> float:
    """Seconds from the first window until windows are as those before were; infinite if they never are."""
    least = min(window.attainment for window in before)
    most_ms = SLOWER * max(window.p99_ms for window in before)
    normal = [window.attainment >= least and window.p99_ms <= most_ms for window in after]
    for place in range(len(after) - NUM_NORMAL + 1):
        if all(normal[place : place + NUM_NORMAL]):
            return (after[place].begin_ms - after[0].begin_ms) / 1000
    return math.inf


async def flood(address: str, contents: Sequence[bytes | str], rate: float, duration_s: float) -> Flood:
    """Send requests of `FACTOR` images at a fixed rate, whatever becomes of them."""
    images = [pb.Input(image=content) for content in contents if isinstance(content, bytes)]
    slo = pb.Slo(latency_ms=SLO_MS)
    batches = [images[start : start + FACTOR] for start in range(0, len(images) - FACTOR, FACTOR)]
    requests = [pb.EmbedRequest(inputs=batch, slo=slo).SerializeToString() for batch in batches]
    codes: Counter[str] = Counter()
    async with open_aio_channel(address) as channel, asyncio.TaskGroup() as asking:
        embed = channel.unary_unary("/elastic.v1.EmbeddingService/Embed")

        async def ask(request: bytes) -> None:
            try:
                await embed(request, timeout=SLO_MS / 1000 + 1)
            except grpc.aio.AioRpcError as error:
                codes[error.code().name] += 1
            else:
                codes["OK"] += 1

        clock = asyncio.get_running_loop().time
        began_s, number = clock(), 0
        while (now_s := clock()) < began_s + duration_s:
            while number <= (now_s - began_s) * rate:
                asking.create_task(ask(requests[number % len(requests)]))
                number += 1
            await asyncio.sleep(1 / rate)
        sent_s = clock() - began_s
    return Flood(number * FACTOR / sent_s, codes)


def _capacity(address: str, contents: Sequence[bytes | str]) -> float:
    """Answers per second of a closed loop."""
    load = Load(address=address, contents=contents, slo_ms=np.array([10 * SLO_MS]), concurrency=32, duration_ms=8_000.0)
    return summarise(send(load)).overall.throughput


def _quiet(address: str, contents: Sequence[bytes | str], rate: float, duration_s: float) -> list[Window]:
    """Windows of a load that the server can bear."""
    at_ms = poisson(rate, 1000 * duration_s, np.random.default_rng(0))
    windows = Windows(0.0, WINDOW_MS, tolerance=0.1)

    def tick(*seen: object) -> bool:
        windows.update(*seen)  # type: ignore[arg-type]
        return False  # go on, however stable it is

    send(Load(address=address, contents=contents, at_ms=at_ms, slo_ms=np.full(len(at_ms), SLO_MS)), tick)
    return windows.closed
