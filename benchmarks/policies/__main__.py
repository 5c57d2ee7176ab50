"""Which policy serves best? The server's against those of other systems, on the same arrivals and tables.

- simulated: three shapes of arrivals at several loads, one replica, batches as long as was measured;
- optimum: the best that knowing everything beforehand could do, on instances small enough to solve exactly;
- live: the same policies in `elastic serve` on this machine, an open-loop client beside it, with a ViT-S/16;
- calibration: the very arrivals of the live part through the simulator, and the difference.

    python -m benchmarks.policies                     # everything; about an hour on two quiet cores
    python -m benchmarks.policies --parts simulated   # one part; the others keep their last results

Needs `elastic profile` of the model first. Writes benchmarks/results/policies.json, and docs/policies/report.md and
docs/policies/pareto.png from whatever is in it.

It cannot show: several machines, a GPU, a client that does not share the server's cores.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.policies import larger, live, report, simulated
from benchmarks.serving.server import elastic_serve
from elastic.checkpoint import MANIFEST, Manifest, resolve_run
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.profile.store import load_latency, load_quality
from elastic.serve.config import ServeConfig
from elastic.serve.front import build_fronts
from elastic.serve.policies.lookahead import LookaheadPolicy
from elastic.serve.policies.registry import POLICIES
from elastic.simulate.fleet import Fleet
from elastic.simulate.service import MeasuredTimes

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "policies.json"
DOCS = ROOT / "docs" / "policies"
PARTS = ("simulated", "optimum", "live")
SHAPES = ("poisson", "bursty", "accelerating")
REPLY_MARGIN_MS = 5.0
"""What the live server keeps back for answers to a client on its own cores: half of what it then spends outside of
queue and model (`live.Fit.overhead_ms`)."""
QUIET_LOAD = 0.2
"""At which the server around the model is measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How much is compared."""

    parts: tuple[str, ...] = PARTS
    """Which parts to run: simulated, optimum, live."""
    policies: tuple[str, ...] = POLICIES
    loads: tuple[float, ...] = (0.5, 0.8, 1.3)
    """Of the simulation, over what the largest submodel can just serve in its largest batches."""
    seeds: int = 5
    """Of the simulation."""
    duration_s: float = 10.0
    """Of each simulated trace."""
    live_loads: tuple[float, ...] = (0.5, 1.3)
    """Of the server, over what the largest submodel of `larger` can just serve."""
    live_objectives: float = 5.0
    """Latency objective of the live part, in calls of the largest submodel for one image."""
    live_shape: str = "bursty"
    live_seeds: int = 5
    live_duration_s: float = 12.0


def main(options: Options) -> None:
    """Run the parts, write the results, the report and the plot."""
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for part in options.parts:
            results[part] = {"simulated": _simulated, "optimum": _optimum, "live": _live}[part](options, progress)
            results[part] |= {"options": asdict(options), "provenance": asdict(collect(device_fingerprint()))}
            RESULTS.write_text(json.dumps(results, indent=None, separators=(",", ":")) + "\n", encoding="utf-8")
    DOCS.mkdir(exist_ok=True)
    (DOCS / "report.md").write_text(text := _text(results), encoding="utf-8")
    report.pareto(_panels(results), columns=3).savefig(DOCS / "pareto.png", dpi=110)
    print(text)


def measured_fleet(run: Path) -> Fleet:
    """One replica of a model, from this machine's table."""
    latency = load_latency(run, device_fingerprint())
    fronts = build_fronts(
        latency, load_quality(run), {"image": Manifest.from_json(run / MANIFEST).encoder.space}, ServeConfig(run=run)
    )
    times = MeasuredTimes(fronts, latency.where(dtype="float32", num_threads=1).isotonic())
    return Fleet(fronts=fronts, times=times, policy=LookaheadPolicy)


def _simulated(options: Options, progress: Progress) -> dict[str, Any]:
    fleet = measured_fleet(resolve_run(None))
    front = fleet.fronts["image"]
    cells = [
        simulated.Cell(
            shape=shape, load=load, policies=options.policies, seeds=options.seeds, duration_s=options.duration_s
        )
        for shape in SHAPES
        for load in options.loads
    ]
    task = progress.add_task("simulated", total=len(cells) * len(options.policies))
    rows = simulated.run_all(fleet, cells, lambda: progress.advance(task))
    rows.sort(key=lambda row: (options.policies.index(str(row["policy"])), row["seed"]))
    return {"rows": rows, "capacity": simulated.capacity(front), "slo_ms": simulated.objective_ms(front)}


def _optimum(options: Options, progress: Progress) -> dict[str, Any]:
    fleet = measured_fleet(resolve_run(None))
    task = progress.add_task("optimum", total=len(options.loads))
    rows: list[dict[str, object]] = []
    for load in options.loads:
        rows += simulated.against_optimum(fleet.fronts, options.policies, load, options.seeds)
        progress.advance(task)
    return {"rows": rows}


def _live(options: Options, progress: Progress) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        run = larger.write_run(Path(folder) / "vit_small")
        fleet = measured_fleet(run)
        front = fleet.fronts["image"]
        capacity, slo_ms = simulated.capacity(front), options.live_objectives * front.levels[-1].batch_ms[0]
        traffic = live.Traffic(
            shape=options.live_shape,
            rates=[load * capacity for load in options.live_loads],
            slo_ms=slo_ms,
            seeds=options.live_seeds,
            duration_s=options.live_duration_s,
        )
        margin = ("--reply-margin-ms", str(REPLY_MARGIN_MS))
        with elastic_serve(run, *margin, "--policy", "static=largest") as server:
            fitted = live.fit(server.address, fleet, QUIET_LOAD * capacity, slo_ms)
        task = progress.add_task("live", total=len(options.policies) * len(traffic.rates) * traffic.seeds)
        seen: list[dict[str, object]] = []
        for seed, policy in live.turns(options.policies, traffic.seeds):
            with elastic_serve(run, *margin, "--policy", policy) as server:
                seen += live.run(server.address, policy, traffic, seed, lambda: progress.advance(task))
        seen.sort(key=lambda row: options.policies.index(str(row["policy"])))
        beside = [row for policy in options.policies for row in live.simulate_same(fleet, fitted, policy, traffic)]
    return {"rows": seen, "beside": beside, "fit": asdict(fitted), "rates": traffic.rates, "slo_ms": slo_ms}


def _text(results: dict[str, Any]) -> str:
    parts = [
        "# Policies compared",
        "",
        "Written by `python -m benchmarks.policies`; mean and 95 % interval over seeds.",
    ]
    if part := results.get("simulated"):
        machine = part["provenance"]["device"]
        for load in part["options"]["loads"]:
            rate = load * part["capacity"]
            title = f"Simulated, {rate:.0f} requests/s ({load:g} of what the largest serves), {part['slo_ms']:.1f} ms"
            parts += ["", f"## {title}"]
            for shape in SHAPES:
                parts += ["", f"{shape}:", "", report.simulated_table(part["rows"], shape, load)]
        parts += ["", f"One replica of the model in the package, table of: {machine}."]
    if part := results.get("optimum"):
        parts += ["", "## Share of the optimum, %", ""]
        parts += [f"Bursty traces of {simulated.SMALL_OBJECTIVES:.0f} objectives, times exactly as predicted.", ""]
        parts += [report.optimum_table(part["rows"])]
    if part := results.get("live"):
        options = part["options"]
        for rate, load in zip(part["rates"], options["live_loads"], strict=True):
            what = f"{options['live_shape']}, {rate:.1f} requests/s ({load:g} of the largest), {part['slo_ms']:.0f} ms"
            parts += ["", f"## Live: {what}", "", report.live_table(part["rows"], rate)]
            parts += ["", f"### The simulator beside it: {what}", ""]
            parts += [report.calibration_table(part["rows"], part["beside"], rate)]
        fit = part["fit"]
        parts += ["", f"Fitted beforehand: {fit['overhead_ms']:.2f} ms outside of queue and model, batches"]
        parts += [f"{fit['slowdown']:.2f} times as long as profiled."]
    return "\n".join(parts) + "\n"


def _panels(results: dict[str, Any]) -> dict[str, Sequence[report.Row]]:
    panels: dict[str, Sequence[report.Row]] = {}
    if part := results.get("simulated"):
        for load in part["options"]["loads"]:
            for shape in SHAPES:
                rows = [row for row in part["rows"] if (row["shape"], row["load"]) == (shape, load)]
                panels[f"simulated: {shape}, load {load:g}"] = rows
    if part := results.get("live"):
        for rate, load in zip(part["rates"], part["options"]["live_loads"], strict=True):
            rows = [row for row in part["rows"] if row["rate"] == rate]
            panels[f"live: {part['options']['live_shape']}, load {load:g}"] = rows
    return panels


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
