"""The verb `elastic bench`: what a running server answers under load, measured as its users would."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.bench.inputs import contents
from elastic.bench.load import Load, Sample, Samples
from elastic.bench.plot import plot
from elastic.bench.report import as_json, print_report, stability
from elastic.bench.schedule import mix, warmed_up
from elastic.bench.send import send, server_info
from elastic.bench.summary import Summary, summarise
from elastic.bench.windows import Windows
from elastic.channel import Tls
from elastic.client import DEFAULT_ADDRESS
from elastic.errors import ConfigError
from elastic.simulate.recorded import read_offsets, read_trace
from elastic.simulate.trace import Shape, draw

RESULT, SAMPLES, PLOT = "bench.json", "samples.parquet", "bench.png"
CLOSED_OBJECTIVES = 1_000
"""Drawn for a closed load, which repeats them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """Send a running server a load, and see how many requests met their objective, how soon, and how well.

    Open loop: requests are sent at their times whether or not earlier ones were answered, and everything counts from
    the intended time; a concurrency closes the loop. Late, refused, failed and unanswered requests are not met.
    Writes bench.json, samples.parquet (a row per request) and bench.png.

    Example: elastic bench serve --rate 100 --shape bursty
    """

    address: Annotated[str, tyro.conf.Positional] = DEFAULT_ADDRESS
    """host:port of the server."""
    rate: float = 50.0
    """Mean requests per second, one input each."""
    shape: Shape = "poisson"
    """Arrivals: independent; three quarters of them in bursts; from half the rate to three halves; a day; twice the
    rate between halves; or recorded (`pip install elastic[traces]`): flights, or the use of one of three clusters."""
    trace: Path | None = None
    """Send a part of a recorded trace instead, fitted to the rate and duration; docs/simulation.md lists formats."""
    intervals_file: Path | None = None
    """Send at exactly the times in this file instead: milliseconds from the beginning, ascending, one a line."""
    concurrency: int | None = None
    """Closed loop instead: so many workers, each asks again once it has its answer."""
    duration_s: float = 30.0
    """Counted seconds of a drawn trace or closed loop; a file is as long as it is."""
    warmup_s: float = 3.0
    """Seconds before that are sent at the mean rate, independently, and not counted."""
    window_s: float = 3.0
    """Length of the windows by which stability is judged."""
    tolerance: float = 0.1
    """Stable: throughput and p99 of three windows in a row within this share of their mean."""
    stop_early: bool = True
    """Stop once stable. Bursty, accelerating and recorded arrivals are always sent to their end."""
    latency_slo_ms: tuple[float, ...] = (50.0,)
    """Objectives; each request draws one."""
    slo_weights: tuple[float, ...] = ()
    """How often each objective is drawn; left out, all alike."""
    images: Path | None = None
    """Folder of image files to send; left out, the bundled icons."""
    text_share: float = 0.0
    """Share of texts among the inputs: captions of the icons."""
    embed_dim: int | None = None
    """Width of the embeddings; left out, the full one."""
    connections: int = 4
    """Connections to the server; requests take turns."""
    api_key: str | None = None
    """Key for a server that asks for one. Other users of this machine see arguments: prefer ELASTIC_API_KEY."""
    tls_ca: Path | None = None
    """Talk TLS, and trust the authorities whose certificates are in this PEM file."""
    tls_cert: Path | None = None
    """Certificate (PEM) to show to a server that asks its clients for one."""
    tls_key: Path | None = None
    """Private key (PEM) of that certificate."""
    seed: int = 0
    """Of arrivals, objectives and inputs. Arrivals are those of `elastic simulate` with the same settings."""
    out: Path = Path("runs/bench")
    """Directory for the results."""

    def __post_init__(self) -> None:
        for name in ("rate", "duration_s", "window_s", "tolerance"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, getattr(self, name), "must be positive")
        if self.warmup_s < 0:
            raise ConfigError("warmup_s", self.warmup_s, "must not be negative")
        if sum(one is not None for one in (self.concurrency, self.intervals_file, self.trace)) > 1:
            raise ConfigError(
                "trace", self.trace, "only one of --trace, --intervals-file and --concurrency sets the load"
            )

    def run(self) -> None:
        """Send the load, print the tables, write the files."""
        console = Console()
        load = self.load()
        info = server_info(load)
        if self.text_share > 0 and pb.MODALITY_TEXT not in info.modalities:
            raise ConfigError("text_share", self.text_share, f"{info.model_name} embeds no texts")
        windows = Windows(1000 * self.warmup_s, 1000 * self.window_s, self.tolerance)
        everything = self._send(console, load, windows)
        samples = everything.between(1000 * self.warmup_s, everything.end_ms)
        if len(samples) == 0:
            raise ConfigError("duration_s", self.duration_s, "no request fell into it; raise it or the rate")
        summary, title = summarise(samples), self.title(info)
        self._save(title, info, load, samples, summary, windows)
        print_report(console, title, summary, samples.messages)
        console.print("windows    " + stability(windows.closed, windows.stable, self.tolerance), soft_wrap=True)
        console.print(f"wrote [bold]{self.out / RESULT}[/bold], {SAMPLES} and {PLOT}", soft_wrap=True)

    def load(self) -> Load:
        """The load that the flags describe, warm-up and all."""
        rng = np.random.default_rng(self.seed)
        at_ms, duration_ms = self._arrivals()
        if at_ms is not None:
            at_ms = warmed_up(at_ms, duration_ms, 1000 * self.warmup_s, rng)
        count = CLOSED_OBJECTIVES if at_ms is None else len(at_ms)
        return Load(
            address=self.address,
            contents=contents(self.images, self.text_share, rng),
            slo_ms=mix(self.latency_slo_ms, self.slo_weights, count, rng),
            at_ms=at_ms,
            concurrency=self.concurrency or 0,
            duration_ms=1000 * self.warmup_s + duration_ms,
            connections=self.connections,
            embed_dim=self.embed_dim,
            api_key=self.api_key,
            tls=self.tls(),
        )

    def title(self, info: pb.InfoReply) -> str:
        """The load in a line."""
        if self.concurrency is not None:
            how = f"closed loop of {self.concurrency}"
        elif self.intervals_file is not None:
            how = f"arrivals of {self.intervals_file.name}"
        else:
            how = f"{self.shape if self.trace is None else self.trace.name} arrivals at {self.rate:g}/s"
        objectives = ", ".join(f"{slo_ms:g}" for slo_ms in self.latency_slo_ms)
        return f"{info.model_name} at {self.address}: {how}, objectives {objectives} ms"

    def tls(self) -> Tls | None:
        """How to talk TLS; None in the clear."""
        if self.tls_ca is None and self.tls_cert is None and self.tls_key is None:
            return None
        return Tls(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)

    @property
    def steady(self) -> bool:
        """Whether the load is the same at all times, so that the rest of it can be foretold from a part."""
        if self.intervals_file is not None or self.trace is not None:
            return False
        return self.concurrency is not None or self.shape == "poisson"

    def _arrivals(self) -> tuple[np.ndarray | None, float]:
        """Counted arrivals, none of a closed loop, and how long they last."""
        duration_ms = 1000 * self.duration_s
        if self.concurrency is not None:
            return None, duration_ms
        if self.intervals_file is not None:
            at_ms = read_offsets(self.intervals_file)
            return at_ms, max(float(at_ms[-1]), 1.0)
        shape = self.shape if self.trace is None else read_trace(self.trace)
        return draw(shape, self.rate, duration_ms, self.seed), duration_ms

    def _send(self, console: Console, load: Load, windows: Windows) -> Samples:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task("warming up", total=load.span_ms)

            def watch(ended: Sequence[Sample], now_ms: float) -> bool:
                stable = windows.update(ended, now_ms)
                progress.update(task, completed=min(now_ms, load.span_ms), description=_description(windows))
                return stable and self.stop_early and self.steady

            return send(load, watch)

    def _save(
        self, title: str, info: pb.InfoReply, load: Load, samples: Samples, summary: Summary, windows: Windows
    ) -> None:
        # Only now, because the fingerprint loads torch, which must not slow the sending down.
        from elastic.profile.device import device_fingerprint
        from elastic.profile.provenance import collect

        provenance = collect(device_fingerprint())
        if self.api_key is not None:
            provenance = replace(provenance, command=provenance.command.replace(self.api_key, "..."))
        options = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}
        server = {"model": info.model_name, "version": info.model_version, "device": info.device}
        values = {
            "title": title,
            "server": server,
            "options": options | {"api_key": None if self.api_key is None else "..."},
            "generator": asdict(provenance),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        values |= as_json(summary, windows.closed, windows.stable)
        (self.out / RESULT).write_text(json.dumps(values, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        samples.save(self.out / SAMPLES)
        plot(title, samples).savefig(self.out / PLOT, dpi=130)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Show the result of an earlier load again, from its samples.

    Example: elastic bench report runs/bench
    """

    folder: Annotated[Path, tyro.conf.Positional] = Path("runs/bench")
    """Directory that `elastic bench serve` wrote."""

    def run(self) -> None:
        """Print the tables and draw the plot anew."""
        samples = Samples.load(self.folder / SAMPLES)
        print_report(Console(), str(self.folder), summarise(samples), samples.messages)
        plot(str(self.folder), samples).savefig(self.folder / PLOT, dpi=130)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """Put a running server under load, or show an earlier result."""

    command: Annotated[
        Annotated[Serve, tyro.conf.subcommand("serve")] | Annotated[Report, tyro.conf.subcommand("report")],
        tyro.conf.arg(name=""),
    ]
    """What to do."""

    def run(self) -> None:
        """Do it."""
        self.command.run()


def _description(windows: Windows) -> str:
    if not windows.closed:
        return "warming up, first window"
    last = windows.closed[-1]
    return f"{last.throughput:.0f} answers/s, {last.attainment:.0%} met, p99 {last.p99_ms:.1f} ms"
