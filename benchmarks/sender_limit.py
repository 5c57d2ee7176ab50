"""How many requests per second the sender of `elastic.bench` keeps up with, and what one costs it.

The server is another process that answers at once with 128 coordinates, so whatever is late was sent late. Rates
rise; of each, how late requests were sent and the processor time that one took. Sender and server share the
machine: with two cores or a busy machine, lateness says more about the machine, processor time says less.

    python benchmarks/sender_limit.py
"""

import asyncio
import json
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceServicer, add_EmbeddingServiceServicer_to_server
from elastic.bench.inputs import contents
from elastic.bench.load import Load
from elastic.bench.send import send
from elastic.bench.summary import Percentiles
from elastic.simulate.trace import draw

RESULTS = Path(__file__).parent / "results" / "sender_limit.json"
SLO_MS = 1_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Send at rising rates."""

    rates: tuple[float, ...] = (100.0, 250.0, 500.0, 750.0, 1000.0, 1500.0, 2000.0)
    """Poisson arrivals per second."""
    duration_s: float = 5.0
    """Of each."""
    out: Path = RESULTS
    """Where the numbers go."""


@dataclass(frozen=True, slots=True)
class Row:
    """One rate."""

    rate: float
    requests: int
    answered: float
    """Share, within a second."""
    lag_ms: Percentiles
    cpu_ms: float
    """Processor time of the sending process per request."""


class Trivial(EmbeddingServiceServicer):
    """Answers at once."""

    async def Embed(self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext) -> pb.EmbedReply:
        """`elastic.v1.EmbeddingService/Embed`."""
        why = pb.Explanation(modality=pb.MODALITY_IMAGE, granularity="S", embed_dim=128, quality=0.5)
        return pb.EmbedReply(embeddings=[pb.Embedding(values_f32=bytes(512), explanation=why)], slo_met=True)


def serve(port: Connection) -> None:
    """Serve until killed."""

    async def run() -> None:
        server = grpc.aio.server()
        add_EmbeddingServiceServicer_to_server(Trivial(), server)
        bound = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        port.send(bound)
        await server.wait_for_termination()

    asyncio.run(run())


@contextmanager
def serving() -> Iterator[str]:
    """The address of a trivial server in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"127.0.0.1:{here.recv()}"
    finally:
        process.kill()
        process.join()


def measure(address: str, rate: float, duration_s: float) -> Row:
    """Send one rate."""
    at_ms = draw("poisson", rate, 1000 * duration_s, seed=0)
    images = contents(None, 0.0, np.random.default_rng(0))
    slo_ms = np.full(len(at_ms), SLO_MS)
    found = send(Load(address=address, contents=images, at_ms=at_ms, slo_ms=slo_ms, connections=4))
    sent_ms = max(found.duration_ms, float(found.sent_ms.max()))
    return Row(
        rate=rate,
        requests=len(found),
        answered=float(found.met.mean()),
        lag_ms=Percentiles.of(found.lag_ms),
        cpu_ms=found.cpu_share * sent_ms / len(found),
    )


def main(options: Options) -> None:
    """Print the table and write the numbers."""
    # Here, because the server's process imports this file too and needs no torch.
    from elastic.profile.device import device_fingerprint
    from elastic.profile.provenance import collect

    table = Table(title="Sent late by, and processor time of a request")
    for column in ("rate", "p50 ms", "p99 ms", "answered within 1 s", "cpu ms"):
        table.add_column(column, justify="right")
    with serving() as address:
        rows = [measure(address, rate, options.duration_s) for rate in options.rates]
    for row in rows:
        lag = row.lag_ms
        table.add_row(f"{row.rate:g}", f"{lag.p50:.2f}", f"{lag.p99:.2f}", f"{row.answered:.1%}", f"{row.cpu_ms:.2f}")
    busy = os.getloadavg()[0]
    Console().print(table, f"load average of the machine {busy:.1f}")
    values = {"rows": [asdict(row) for row in rows], "load_average": busy}
    values["provenance"] = asdict(collect(device_fingerprint()))
    options.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Options))
