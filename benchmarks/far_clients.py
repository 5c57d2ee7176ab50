"""How long the way of an image to the server takes when its client is far away, by how much may be sent in one go.

HTTP/2 lets a client send one window of a request and then wait until it hears that some of it was read. Measured is
`elastic serve` with the window of Ray's HAProxy configuration and with its own (`elastic.serve.ingress.haproxy`),
behind a relay that holds every byte back for half a round trip, in both directions; the time is that of the call less
what the server needed from the whole request to its answer, which is given in the reply.

    python -m benchmarks.far_clients     # two minutes

It cannot show: loss, limited bandwidth, TCP's slow start over a real distance.
"""

import asyncio
import io
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.serving.server import elastic_serve
from elastic.checkpoint import resolve_run
from elastic.client import Client
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.serve.command import ensure_profiled
from elastic.serve.config import ServeConfig
from elastic.serve.ingress.haproxy import UPLOAD_BYTES

RESULTS = Path(__file__).parent / "results" / "far_clients.json"
VARIABLE, RAYS_BYTES = "RAY_SERVE_HAPROXY_H2_FE_INITIAL_WINDOW_SIZE", 64 * 2**10
SLO_MS = 60_000.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Send images of several sizes over a distance."""

    round_trips_ms: tuple[float, ...] = (50.0, 0.0)
    """What the relay adds; 0 is no relay."""
    sizes_kib: tuple[int, ...] = (20, 100, 1000, 4000)
    """Of the encoded image."""
    calls: int = 5
    """Of each, after one that is not counted."""
    out: Path = RESULTS
    """Where the numbers go."""


@dataclass(frozen=True, slots=True)
class Row:
    """One window, distance and size."""

    window_kib: int
    round_trip_ms: float
    size_kib: float
    way_ms: float
    """Median of the times there and back."""


def relay(port: Connection, target: int, hold_s: float) -> None:
    """Pass connections on to another port of this machine, every byte later by so much, until killed."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(2**16):
            loop.call_later(hold_s, writer.write, data)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    async def run() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@contextmanager
def far_away(port: int, round_trip_ms: float) -> Iterator[int]:
    """A port from which the way to another takes so much longer."""
    if not round_trip_ms:
        yield port
        return
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=relay, args=(there, port, round_trip_ms / 2000), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


@contextmanager
def serving(window_bytes: int) -> Iterator[int]:
    """The gRPC port of a server of the model in the package whose HAProxy has this window."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(window_bytes)
    try:
        with elastic_serve(resolve_run(None)) as server:
            yield server.port
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def image_of(kib: int) -> bytes:
    """A JPEG of noise of about this size."""
    pixels = np.random.default_rng(0).integers(0, 256, (round((kib * 1024 / 0.76) ** 0.5),) * 2 + (3,), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=85)
    return file.getvalue()


def ways_ms(port: int, image: bytes, calls: int) -> list[float]:
    """Of calls one after the other, each the time that was not the server's."""
    found = []
    with Client(f"127.0.0.1:{port}") as client:
        for _ in range(calls + 1):
            begin_s = time.perf_counter()
            (embedding,) = client.embed(images=[image], latency_slo_ms=SLO_MS)
            found.append(1000 * (time.perf_counter() - begin_s) - embedding.total_ms)
    return found[1:]  # the first has connected


def measure(port: int, window_bytes: int, options: Options) -> Iterator[Row]:
    """Every distance and size at one server."""
    for round_trip_ms in options.round_trips_ms:
        with far_away(port, round_trip_ms) as far_port:
            for image in map(image_of, options.sizes_kib):
                way_ms = median(ways_ms(far_port, image, options.calls))
                yield Row(window_bytes // 1024, round_trip_ms, round(len(image) / 1024, 1), way_ms)


def table(rows: Sequence[Row]) -> Table:
    """A line per distance and size, a column per window."""
    windows = list(dict.fromkeys(row.window_kib for row in rows))
    shown = Table(
        "round trip, ms", "image, KiB", *(f"window of {window} KiB" for window in windows), title="ms there and back"
    )
    ways = {(row.round_trip_ms, row.size_kib, row.window_kib): row.way_ms for row in rows}
    for distance, size in dict.fromkeys((row.round_trip_ms, row.size_kib) for row in rows):
        shown.add_row(f"{distance:g}", f"{size:.0f}", *(f"{ways[distance, size, window]:.1f}" for window in windows))
    return shown


def main(options: Options) -> None:
    """Measure, print the table, write the numbers."""
    console, load_before = Console(), os.getloadavg()[0]
    ensure_profiled(ServeConfig(run=resolve_run(None)), "auto", console)
    rows: list[Row] = []
    windows = (RAYS_BYTES, UPLOAD_BYTES)
    with Progress(console=console) as progress:
        sizes = progress.add_task("sizes", total=len(windows) * len(options.round_trips_ms) * len(options.sizes_kib))
        for window_bytes in windows:
            with serving(window_bytes) as port:
                for row in measure(port, window_bytes, options):
                    rows.append(row)
                    progress.advance(sizes)
    console.print(table(rows))
    values = {"rows": [asdict(row) for row in rows], "load_before": load_before}
    values["provenance"] = asdict(collect(device_fingerprint()))
    options.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
