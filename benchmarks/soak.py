"""Whether a server's memory grows while it does the same for long: a steady load of images and texts, and the resident
memory of each of its processes every few seconds.

A process that leaks has a slope whose confidence interval lies above 0, after a warm-up in which caches fill. Memory is
no independent noise from sample to sample, so the line is fitted to the means of ten blocks of time; they hardly depend
on each other, and the interval is Student's with eight degrees of freedom. Generator and server share the cores.

    python -m benchmarks.soak                    # half an hour
    python -m benchmarks.soak --minutes 2 --out soak.json --plot soak.png
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib import colormaps
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from benchmarks.serving.processes import Sampler
from benchmarks.serving.server import elastic_serve
from elastic.bench.inputs import contents
from elastic.bench.load import Load
from elastic.bench.report import json_values
from elastic.bench.send import send
from elastic.bench.summary import summarise
from elastic.checkpoint import resolve_run
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.serve.command import ensure_profiled
from elastic.serve.config import ServeConfig
from elastic.simulate.trace import poisson

ROOT = Path(__file__).parents[1]
NUM_BLOCKS = 10
T_95 = 2.306
"""Two-sided, of `NUM_BLOCKS` - 2 degrees of freedom."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Load a server of the model in the package for long and watch its memory."""

    minutes: float = 30.0
    """Of load, the warm-up included."""
    warmup_share: float = 0.2
    """Of the time, at the beginning, that no slope is taken of."""
    rate: float = 20.0
    """Requests per second, of one input each."""
    text_share: float = 0.3
    """Of the inputs; the others are images."""
    slo_ms: float = 200.0
    """Objective of every request."""
    every_s: float = 3.0
    """Between readings of memory."""
    out: Path = ROOT / "benchmarks" / "results" / "soak.json"
    """Where the JSON goes."""
    plot: Path = ROOT / "docs" / "soak.png"
    """Where the plot goes."""


@dataclass(frozen=True, slots=True)
class Slope:
    """MiB per hour, with its 95 % confidence interval."""

    estimate: float
    low: float
    high: float

    @classmethod
    def of(cls, at_s: Sequence[float], mib: Sequence[float]) -> "Slope":
        """The line through the means of ten blocks of equal numbers of samples, at least one each."""
        hours = np.array([block.mean() for block in np.array_split(np.array(at_s) / 3600, NUM_BLOCKS)])
        means = np.array([block.mean() for block in np.array_split(np.array(mib), NUM_BLOCKS)])
        centred = hours - hours.mean()
        estimate = float(centred @ means / (centred @ centred))
        residuals = means - means.mean() - estimate * centred
        half = T_95 * float(np.sqrt(residuals @ residuals / (NUM_BLOCKS - 2) / (centred @ centred)))
        return cls(estimate, estimate - half, estimate + half)


def main(options: Options) -> None:
    """Load, read, fit, print, draw, write."""
    run, console = resolve_run(None), Console()
    ensure_profiled(ServeConfig(run=run), "auto", console)
    rng = np.random.default_rng(0)
    at_ms = poisson(options.rate, 60_000 * options.minutes, rng)
    inputs = contents(None, options.text_share, rng)
    load_before = os.getloadavg()[0]
    with elastic_serve(run) as server, Sampler(server.pid, options.every_s) as memory:
        slo_ms = np.full(len(at_ms), options.slo_ms)
        samples = send(Load(address=server.address, contents=inputs, at_ms=at_ms, slo_ms=slo_ms))
    mib = {role: memory.of(role) for role in sorted(set().union(*memory.samples))}
    mib["all"] = [sum(sample.values()) for sample in memory.samples]
    slopes = slopes_of(memory.at_s, mib, options.warmup_share)
    service = summarise(samples).overall
    console.print(table(slopes, mib))
    console.print(f"{service.requests} requests, {service.attainment:.2%} met, p99 {service.latency_ms.p99:.1f} ms")
    draw(memory.at_s, mib, slopes, options).savefig(options.plot, dpi=150)
    found = {
        "model": run.name,
        "options": {name: value for name, value in asdict(options).items() if not isinstance(value, Path)},
        "requests": service.requests,
        "attainment": service.attainment,
        "latency_ms": asdict(service.latency_ms),
        "slopes_mib_per_hour": {role: asdict(slope) for role, slope in slopes.items()},
        "at_s": np.round(memory.at_s, 1).tolist(),
        "mib": {role: np.round(values, 2).tolist() for role, values in mib.items()},
        "load_before": load_before,
        "provenance": asdict(collect(device_fingerprint())),
    }
    options.out.write_text(json.dumps(json_values(found)) + "\n", encoding="utf-8")
    console.print(f"wrote {options.out} and {options.plot}")


def slopes_of(at_s: Sequence[float], mib: Mapping[str, Sequence[float]], warmup_share: float) -> dict[str, Slope]:
    """By role, of what comes after the warm-up."""
    first = int(np.searchsorted(at_s, warmup_share * at_s[-1]))
    return {role: Slope.of(at_s[first:], values[first:]) for role, values in mib.items()}


def table(slopes: Mapping[str, Slope], mib: Mapping[str, Sequence[float]]) -> Table:
    """A line per process, the largest slope first."""
    shown = Table("process", "MiB at the end", "MiB per hour", "95 %", box=SIMPLE)
    for role, slope in sorted(slopes.items(), key=lambda item: -item[1].estimate):
        interval = f"{slope.low:+.1f} to {slope.high:+.1f}"
        shown.add_row(role, f"{mib[role][-1]:.0f}", f"{slope.estimate:+.1f}", interval)
    return shown


def draw(
    at_s: Sequence[float], mib: Mapping[str, Sequence[float]], slopes: Mapping[str, Slope], options: Options
) -> Figure:
    """Each process's memory, as its distance from where it was at the end of the warm-up."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=[colormaps["tab20"](number) for number in range(20)])
    minutes = np.array(at_s) / 60
    first = int(np.searchsorted(at_s, options.warmup_share * at_s[-1]))
    for role, values in mib.items():
        slope = slopes[role]
        label = f"{role}: {slope.estimate:+.1f} ({slope.low:+.1f} to {slope.high:+.1f})"
        axes.plot(minutes, np.array(values) - values[first], label=label, linewidth=2 if role == "all" else 1)
    axes.axvspan(0, minutes[first], color="0.92", label="warm-up")
    axes.set(xlabel="minutes", ylabel="MiB, from the end of the warm-up", title="Resident memory (MiB per hour, 95 %)")
    axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
