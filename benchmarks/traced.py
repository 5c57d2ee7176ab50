"""What a submodel costs as the trace that is served, against the same call from Python; alone and beside a busy thread.

In a replica the model thread shares the interpreter's lock with the event loop and the decoding threads. Here a thread
of pure Python stands for them: it works for 1.5 ms, then sleeps for 4. Every round makes all calls once, in an order
that is shuffled anew. The two answers are compared, too.

It cannot show: several torch threads, a GPU, what else a server does with its time.

    python -m benchmarks.traced                  # the model inside the package
    python -m benchmarks.traced runs/icons       # another run
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor

from elastic.checkpoint import load_model, resolve_run
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.model.preprocess import CANVAS_CHANNELS, CANVAS_SCALE, to_model_input
from elastic.model.traced import trace_images
from elastic.profile.device import device_fingerprint
from elastic.profile.latency import LatencyConfig, time_in_rounds
from elastic.profile.provenance import collect
from elastic.submodel import Submodel

RESULTS = Path(__file__).parent / "results"
WORK_S, SLEEP_S = 0.0015, 0.004
"""Of the busy thread."""

Cell = tuple[str, int, str]
"""(granularity, batch size, `python` or `trace`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Time of traces against calls from Python."""

    run: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="RUN")] = None
    """Directory of a finished run; the model inside the package if left out."""
    batch_sizes: tuple[int, ...] = (1, 4, 32)
    """Images per call."""
    rounds: int = 100
    """Measured calls of each cell, alone and beside the busy thread."""
    out: Path = RESULTS / "traced.json"
    """Where the JSON goes."""


def main(options: Options) -> None:
    """Measure, print, and write the JSON."""
    torch.set_num_threads(1)
    console, run, load_before = Console(), resolve_run(options.run), os.getloadavg()[0]
    encoder, manifest, _ = load_model(run)
    calls = calls_of(encoder.requires_grad_(False), manifest.preprocess, options.batch_sizes)
    found: dict[str, dict[Cell, list[float]]] = {}
    with Progress(console=console) as progress, torch.inference_mode():
        for where, beside in (("alone", alone), ("beside a busy thread", busy_thread)):
            task = progress.add_task(where, total=options.rounds + LatencyConfig().warmup_rounds)
            with beside():
                config = LatencyConfig(rounds=options.rounds, max_s=300.0)
                found[where] = time_in_rounds(calls, config, partial(progress.advance, task))
        rows = summarise(found)
        differences = [
            float(np.abs(calls[name, size, "trace"]() - calls[name, size, "python"]()).max()) for name, size, _ in calls
        ]
    console.print(render(rows), f"largest difference of an answer: {max(differences):.1e}")
    busy = {"load_before": load_before, "load_after": os.getloadavg()[0]}
    report = asdict(collect(device_fingerprint())) | busy | {"max_difference": max(differences), "rows": rows}
    options.out.write_text(json.dumps(report | {"model": run.name}, indent=1) + "\n", encoding="utf-8")
    console.print(f"wrote {options.out}")


def calls_of(
    encoder: Encoder, preprocess: Preprocess, batch_sizes: tuple[int, ...]
) -> dict[Cell, Callable[[], np.ndarray]]:
    """Every granularity at every batch size, both ways."""
    side, width = CANVAS_SCALE * preprocess.image_size, encoder.space.full_embed_dim
    generator = torch.Generator().manual_seed(0)
    calls: dict[Cell, Callable[[], np.ndarray]] = {}
    for name, submodel in encoder.space.granularities.items():
        trace = trace_images(encoder, preprocess, submodel)
        for size in batch_sizes:
            shape = (size, CANVAS_CHANNELS, side, side)
            canvases = torch.randint(256, shape, dtype=torch.uint8, generator=generator)

            def python(canvases: Tensor = canvases, submodel: Submodel = submodel) -> np.ndarray:
                return encoder.encode_images(to_model_input(canvases, preprocess), submodel, width).numpy()

            def traced(canvases: Tensor = canvases, trace: Callable[[Tensor], Tensor] = trace) -> np.ndarray:
                return trace(canvases).numpy()

            calls |= {(name, size, "python"): python, (name, size, "trace"): traced}
    return calls


@contextmanager
def alone() -> Iterator[None]:
    """Nothing beside the calls."""
    yield


@contextmanager
def busy_thread() -> Iterator[None]:
    """A thread that keeps the interpreter's lock for a quarter of the time, until the block ends."""
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(SLEEP_S):
            until_s = time.perf_counter() + WORK_S
            while time.perf_counter() < until_s:
                pass

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def summarise(found: dict[str, dict[Cell, list[float]]]) -> list[dict[str, object]]:
    """Medians in milliseconds, and the ratio of trace to Python with a 95 % bootstrap interval over rounds."""
    rng, rows = np.random.default_rng(0), []
    for where, seconds in found.items():
        for name, size, kind in seconds:
            if kind == "trace":
                continue
            pair = 1000 * np.array([seconds[name, size, "python"], seconds[name, size, "trace"]])  # [way, round]
            python_ms, trace_ms = np.median(pair, axis=1)
            draws = np.median(pair[:, rng.integers(pair.shape[1], size=(2000, pair.shape[1]))], axis=2)
            low, high = np.quantile(draws[1] / draws[0], (0.025, 0.975))
            row = {"where": where, "submodel": name, "batch_size": size, "python_ms": python_ms, "trace_ms": trace_ms}
            rows.append(row | {"ratio": trace_ms / python_ms, "low": low, "high": high})
    return rows


def render(rows: list[dict[str, object]]) -> Table:
    """A line per cell."""
    table = Table("where", "submodel", "batch", "from Python, ms", "as a trace, ms", "ratio (95 %)")
    for row in rows:
        ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        times = f"{row['python_ms']:.2f}", f"{row['trace_ms']:.2f}"
        table.add_row(str(row["where"]), str(row["submodel"]), str(row["batch_size"]), *times, ratio)
    return table


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
