"""Thousands of connections that are no use to anybody, while others are served."""

import asyncio
import resource
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.faults.connections import HALF_OPEN, closed_after_s
from benchmarks.serving.processes import HAPROXY, Sampler
from benchmarks.serving.server import Running
from elastic.client import AsyncClient

PAUSE_S = 0.05
"""Between calls of the client that is served meanwhile."""
LIMIT_S = 90.0


def hold_many(server: Running, images: Sequence[bytes], count: int) -> dict[str, object]:
    """Open `count` connections, of each kind as many, and keep calling until all are closed."""
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    with Sampler(server.pid, 0.5) as memory:
        alone_ms = asyncio.run(_call(server.address, images, asyncio.Event(), num_calls=50))
        num_before = len(memory.samples)
        closed_s, beside_ms = asyncio.run(_hold_and_call(server, images, count))
    mib = memory.of(HAPROXY)
    closed = {kind: [found for found in times if found is not None] for kind, times in closed_s.items()}
    return {
        "connections": sum(len(times) for times in closed_s.values()),
        "still_open": sum(times.count(None) for times in closed_s.values()),
        "closed_after_s": {kind: max(times, default=None) for kind, times in closed.items()},
        "served": len(beside_ms),
        "p50_ms": {"alone": float(np.median(alone_ms)), "beside": float(np.median(beside_ms))},
        "p99_ms": {"alone": float(np.percentile(alone_ms, 99)), "beside": float(np.percentile(beside_ms, 99))},
        "haproxy_mib": {"before": mib[num_before - 1], "peak": max(mib), "after": mib[-1]},
    }


async def _hold_and_call(
    server: Running, images: Sequence[bytes], count: int
) -> tuple[dict[str, list[float | None]], list[float]]:
    done = asyncio.Event()
    calling = asyncio.create_task(_call(server.address, images, done))
    closed_s = {}
    kinds = {
        kind: asyncio.gather(
            *(closed_after_s(server.host, server.port, *sent, limit_s=LIMIT_S) for _ in range(count // len(HALF_OPEN)))
        )
        for kind, sent in HALF_OPEN.items()
    }
    for kind, holding in kinds.items():
        closed_s[kind] = list(await holding)
    done.set()
    return closed_s, await calling


async def _call(address: str, images: Sequence[bytes], done: asyncio.Event, num_calls: int = 10**9) -> list[float]:
    """Milliseconds of calls one after the other; one that fails raises its error."""
    found_ms = []
    async with AsyncClient(address) as client:
        while not done.is_set() and len(found_ms) < num_calls:
            began_s = time.perf_counter()
            await client.embed(images=[images[len(found_ms) % len(images)]], latency_slo_ms=1_000.0)
            found_ms.append(1000 * (time.perf_counter() - began_s))
            await asyncio.sleep(PAUSE_S)
    return found_ms
