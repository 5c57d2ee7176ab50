"""How fast `elastic serve` refuses: one request that comes too late, and bursts that are more than it can serve.

The model is the one of the policies' live comparison, a random ViT-S/16 at 96 pixels, so that the model is what is
scarce. Requests of a burst are sent at once over one connection, and each is one image with the objective of that
comparison. Alone means that a request says that almost nothing of its budget is left, to an idle server.

Client, HAProxy and server share the cores with the model, so a burst is refused no faster than all of its requests get
through the one core that the model leaves; `ms per request` says how fast that is. The floor is what calls that ask for
nothing take beside a working model: no inputs, so the server says that this is no request, and does nothing else.

    python -m benchmarks.refusals          # six minutes
"""

import asyncio
import itertools
import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.policies import __main__ as policies
from benchmarks.policies import larger
from benchmarks.serving.server import elastic_serve
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceStub
from elastic.bench.inputs import contents
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.serve.api.grpc import DEADLINE_METADATA

RESULTS = Path(__file__).parent / "results" / "refusals.json"
LATE_MS = 5.0
"""What is left of the budget of a request that comes too late."""
NUM_WORKING, DECODED_S = 8, 0.05
"""Images that the model works at while nothing is asked for, and how long the server needs to have them all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Send requests that cannot be answered in time."""

    bursts: tuple[int, ...] = (5, 10, 20, 40)
    """Requests sent at once."""
    repeats: int = 20
    """Of each burst; of the request alone ten times as many."""
    rest_s: float = 1.0
    """Between bursts."""
    out: Path = RESULTS
    """Where the numbers go."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one request."""

    status: str
    ms: float
    """From when its burst was sent to its answer."""

    @property
    def was_refused(self) -> bool:
        """Whether the server said at once that it would be late."""
        return self.status == grpc.StatusCode.RESOURCE_EXHAUSTED.name


@dataclass(frozen=True, slots=True)
class Row:
    """Bursts of one size."""

    size: int
    refused: float
    """Share."""
    p50_ms: float | None = None
    """Of refusals, if there were any; so the others."""
    p90_ms: float | None = None
    ms_per_request: float | None = None
    """Median over bursts of the time of the last refusal over the size."""
    floor_ms_per_request: float | None = None
    """The same for calls that ask for nothing."""


Ask = Callable[[float, float], Awaitable[Sent]]
"""Sends one request with an objective and what is left of it, both in milliseconds."""


def row_of(size: int, bursts: Sequence[Sequence[Sent]]) -> Row:
    """The row of bursts of one size."""
    refusals = [[sent.ms for sent in burst if sent.was_refused] for burst in bursts]
    times_ms = [ms for burst in refusals for ms in burst]
    if not times_ms:
        return Row(size, 0.0)
    p50_ms, p90_ms = (float(value) for value in np.quantile(times_ms, (0.5, 0.9)))
    last_ms = float(np.median([max(burst) for burst in refusals if burst]))
    return Row(size, len(times_ms) / (size * len(bursts)), p50_ms, p90_ms, last_ms / size)


async def measure(address: str, slo_ms: float, options: Options) -> list[Row]:
    """The request alone, then bursts of every size, of requests and of calls that ask for nothing."""
    async with grpc.aio.insecure_channel(address) as channel:
        ask, ask_nothing = asking(channel), asking_nothing(channel)

        async def last_of_nothing_ms(size: int) -> float:
            await asyncio.sleep(options.rest_s)
            working = [asyncio.create_task(ask(10 * slo_ms, 10 * slo_ms)) for _ in range(NUM_WORKING)]
            await asyncio.sleep(DECODED_S)
            times_ms = await asyncio.gather(*(ask_nothing() for _ in range(size)))
            assert not all(task.done() for task in working), "the model had no work any more"
            await asyncio.gather(*working)
            return max(times_ms)

        for _ in range(20):
            await ask(10 * slo_ms, 10 * slo_ms)
        alone = []
        for _ in range(10 * options.repeats):
            await asyncio.sleep(options.rest_s / 20)
            alone.append([await ask(slo_ms, LATE_MS)])
        rows = [row_of(1, alone)]
        for size in options.bursts:
            bursts = []
            for _ in range(options.repeats):
                await asyncio.sleep(options.rest_s)
                bursts.append(await asyncio.gather(*(ask(slo_ms, slo_ms) for _ in range(size))))
            floor_ms = float(np.median([await last_of_nothing_ms(size) for _ in range(options.repeats)]))
            rows.append(replace(row_of(size, bursts), floor_ms_per_request=floor_ms / size))
    return rows


def asking(channel: grpc.aio.Channel) -> Ask:
    """One image after another over a channel."""
    embed = EmbeddingServiceStub(channel).Embed
    images = itertools.cycle(item for item in contents(None, 0.0, np.random.default_rng(0)) if isinstance(item, bytes))

    async def ask(slo_ms: float, left_ms: float) -> Sent:
        request = pb.EmbedRequest(inputs=[pb.Input(image=next(images))], slo=pb.Slo(latency_ms=slo_ms))
        begin = time.perf_counter()
        deadline = (DEADLINE_METADATA, str(1000 * time.time() + left_ms))
        try:
            await embed(request, metadata=[deadline])
            status = "OK"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        return Sent(status, 1000 * (time.perf_counter() - begin))

    return ask


def asking_nothing(channel: grpc.aio.Channel) -> Callable[[], Awaitable[float]]:
    """A request without inputs, and how many milliseconds its answer took."""
    embed = EmbeddingServiceStub(channel).Embed

    async def ask() -> float:
        begin = time.perf_counter()
        try:
            await embed(pb.EmbedRequest())
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            return 1000 * (time.perf_counter() - begin)
        raise AssertionError("a request without inputs was answered")

    return ask


@contextmanager
def serving() -> Iterator[tuple[str, float]]:
    """The address of a server and the objective for it, in milliseconds."""
    with TemporaryDirectory() as folder:
        run = larger.write_run(Path(folder) / "vit_small")
        largest = policies.measured_fleet(run).fronts["image"].levels[-1]
        slo_ms = policies.Options().live_objectives * largest.batch_ms[0]
        with elastic_serve(run, "--reply-margin-ms", str(policies.REPLY_MARGIN_MS)) as server:
            yield server.address, slo_ms


def main(options: Options) -> None:
    """Measure, print the table, write the numbers."""
    load_before = os.getloadavg()[0]
    with serving() as (address, slo_ms):
        rows = asyncio.run(measure(address, slo_ms, options))
    table = Table("sent at once", "refused", "p50 ms", "p90 ms", "ms per request", "floor", title="Refusals")
    for row in rows:
        values = (row.p50_ms, row.p90_ms, row.ms_per_request, row.floor_ms_per_request)
        times = ("" if value is None else f"{value:.1f}" for value in values)
        table.add_row(str(row.size), f"{row.refused:.0%}", *times)
    Console().print(table, f"objective {slo_ms:.0f} ms")
    values = {"rows": [asdict(row) for row in rows], "slo_ms": slo_ms, "load_before": load_before}
    values["provenance"] = asdict(collect(device_fingerprint()))
    options.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
