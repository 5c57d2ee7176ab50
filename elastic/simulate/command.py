"""The verb `elastic simulate`: which policy answers more, and better, before anyone builds the fleet."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from elastic.checkpoint import MANIFEST, Manifest, resolve_run
from elastic.errors import ConfigError
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.profile.store import inside_package, load_latency, load_quality
from elastic.profile.tables import Modality
from elastic.serve.config import ServeConfig
from elastic.serve.front import build_fronts
from elastic.serve.policies.registry import POLICIES, SERVED, policy_maker
from elastic.serve.scaling.scaler import ScalingRules
from elastic.simulate.compare import Score, compare, mean_scores
from elastic.simulate.fleet import Failure, Fleet, Requests
from elastic.simulate.fleets import compare_fleets, plot_fleets, render_fleets, scalers
from elastic.simulate.recorded import read_trace
from elastic.simulate.service import MeasuredTimes
from elastic.simulate.trace import Shape, Traffic, describe, draw
from elastic.submodel import Space

RESULT, PLOT = "simulation.json", "plots/simulation.png"


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulate:
    """Let policies answer the same arrivals on simulated replicas, from the measured tables of a run.

    The code that decides is the server's; batches take times drawn from the latency table. Every request counts: what
    is late or refused is not met. What the arrivals are really like is printed beside the results.
    Writes simulation.json and plots/simulation.png.

    Needs `elastic profile` and `elastic evaluate` of the same run.

    Example: elastic simulate --shape bursty --rate 300 --latency-slo-ms 30 --num-replicas 2
    """

    run_dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """Run directory; left out, the model inside the package (results then go to ./runs/NAME)."""
    shape: Shape = "bursty"
    """Arrivals: independent; three quarters of them in bursts; from half the rate to three halves; a day; twice the
    rate between halves; or recorded (`pip install elastic[traces]`): flights, or the use of one of three clusters."""
    trace: Path | None = None
    """Replay parts of a recorded trace instead, fitted to the rate and duration; docs/simulation.md lists formats."""
    rate: float | None = None
    """Mean requests per second, one image each; left out, what the largest submodel could just serve in its largest
    batches, all replicas together."""
    latency_slo_ms: float | None = None
    """Objective of every request; left out, four times what the largest submodel needs for one image."""
    duration_s: float = 20.0
    """Simulated seconds of each trace."""
    num_replicas: int = 1
    """Model processes; a request goes to the less loaded of two drawn ones."""
    policies: tuple[str, ...] = POLICIES
    """What is compared: lookahead (the server's), slackfit, max_accuracy, max_batch, infaas_min_cost, and static=LEVEL
    or clipper_aimd=LEVEL, where a level is a submodel of the front, smallest or largest."""
    autoscale: tuple[int, int] | None = None
    """Compare, instead of policies, fleets of MIN to MAX replicas that grow and shrink with fixed ones; the first of
    the policies serves. Give it minutes of --duration-s: replicas are kept for one before some stop."""
    start_delay_s: float = 10.0
    """With --autoscale: from the wish for a replica to its first request."""
    seeds: int = 5
    """Traces; every policy sees the same ones."""
    overhead_ms: float = 0.0
    """What an answer spends outside of the model; it comes off every budget."""
    failures: int = 0
    """Replicas that die, at even distances in time, each for a tenth of the trace; their requests go to others."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Use the measured times of this dtype."""
    num_threads: int = 1
    """Use the measured times of this thread count."""
    force_foreign_tables: bool = False
    """Simulate from latencies of another device, too."""
    out: Path | None = None
    """Directory for the results, if not the run directory."""

    def __post_init__(self) -> None:
        for name in ("duration_s", "num_replicas", "seeds"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, getattr(self, name), "must be positive")
        if not 0 <= self.failures < self.num_replicas or self.overhead_ms < 0:
            raise ConfigError("failures", self.failures, "must be less than num_replicas, and overhead_ms not negative")
        if self.start_delay_s < 0:
            raise ConfigError("start_delay_s", self.start_delay_s, "must not be negative")
        self._rules()

    def run(self) -> None:
        """Simulate, write the result and the plot, print the table."""
        run, console = resolve_run(self.run_dir), Console()
        setting = self._setting(run)
        with _progress(console) as progress:
            findings = self._policies(setting, progress) if self.autoscale is None else self._fleets(setting, progress)
        folder = self.out or (Path("runs") / run.name if inside_package(run) else run)
        self._save(folder, setting, findings)
        console.print(findings.table)
        console.print(f"wrote [bold]{folder / RESULT}[/bold] and {PLOT}", soft_wrap=True)

    def _setting(self, run: Path) -> "Setting":
        fleet = self._fleet(run)
        front = fleet.fronts["image"]
        for name in self.policies:
            policy_maker(name, fleet.fronts)  # an unknown one is told before the first minute
        # A fleet that follows its load needs room to grow and to shrink.
        size = self.num_replicas if self.autoscale is None else self.autoscale[1] / 3
        rate = self.rate or size * 1000 * front.max_batch_size / front.levels[-1].batch_ms[-1]
        slo_ms = self.latency_slo_ms or 4 * front.levels[-1].batch_ms[0]
        shape = self.shape if self.trace is None else read_trace(self.trace)
        arrivals = {seed: draw(shape, rate, 1000 * self.duration_s, seed) for seed in range(self.seeds)}
        sizes = f"{self.num_replicas}" if self.autoscale is None else self._rules().sizes
        kind = self.shape if self.trace is None else self.trace.name
        return Setting(
            title=f"{sizes} replica(s) of {run.name}, {kind} arrivals at {rate:.0f}/s, objective {slo_ms:.1f} ms",
            rate=rate,
            slo_ms=slo_ms,
            fleet=fleet,
            traffic=[describe(at_ms, 1000 * self.duration_s) for at_ms in arrivals.values()],
            traces={
                seed: Requests(at_ms=at_ms, slo_ms=np.full(len(at_ms), float(slo_ms)))
                for seed, at_ms in arrivals.items()
            },
        )

    def _policies(self, setting: "Setting", progress: Progress) -> "Findings":
        task = progress.add_task("simulating", total=len(self.policies) * self.seeds)
        scores = compare(setting.fleet, self.policies, setting.traces, on_done=lambda: progress.advance(task))
        return Findings(
            scores={name: {seed: asdict(one) for seed, one in rows.items()} for name, rows in scores.items()},
            table=render(setting.title, setting.traffic, scores),
            figure=pareto(setting.title, scores),
        )

    def _fleets(self, setting: "Setting", progress: Progress) -> "Findings":
        rules, until_ms = self._rules(), 1000 * self.duration_s
        task = progress.add_task("simulating", total=(2 + len(scalers(rules))) * self.seeds)
        trials = compare_fleets(
            replace(setting.fleet, policy=policy_maker(self.policies[0], setting.fleet.fronts)),
            rules,
            1000 * self.start_delay_s,
            setting.traces,
            until_ms,
            on_done=lambda: progress.advance(task),
        )
        return Findings(
            scores={
                name: {"wishes_of_first": trial.shown.wishes}
                | {str(seed): asdict(one) for seed, one in trial.scores.items()}
                for name, trial in trials.items()
            },
            table=render_fleets(setting.title, trials),
            figure=plot_fleets(setting.title, setting.traces[0], trials, until_ms),
        )

    def _rules(self) -> ScalingRules:
        fewest, most = (1, 1) if self.autoscale is None else self.autoscale
        return ScalingRules(min_replicas=fewest, max_replicas=most)

    def _fleet(self, run: Path) -> Fleet:
        served = ServeConfig(run=run, dtype=self.dtype, num_threads=self.num_threads)
        latency = load_latency(run, device_fingerprint(), any_device=self.force_foreign_tables)
        spaces: Mapping[Modality, Space] = {"image": Manifest.from_json(run / MANIFEST).encoder.space}
        fronts = build_fronts(latency, load_quality(run), spaces, served)
        measured = latency.where(dtype=self.dtype, num_threads=self.num_threads)
        gap_ms = 1000 * self.duration_s / (self.failures + 1)
        return Fleet(
            fronts=fronts,
            times=MeasuredTimes(fronts, measured.isotonic()),
            policy=policy_maker(SERVED, fronts),
            num_replicas=self.num_replicas,
            overhead_ms=self.overhead_ms,
            max_waiting=served.max_waiting_items,
            failures=tuple(
                Failure(at_ms=gap_ms * (number + 1), replica=number, down_ms=100 * self.duration_s)
                for number in range(self.failures)
            ),
        )

    def _save(self, folder: Path, setting: "Setting", findings: "Findings") -> None:
        (folder / PLOT).parent.mkdir(parents=True, exist_ok=True)
        values: dict[str, Any] = {
            "title": setting.title,
            "rate": setting.rate,
            "latency_slo_ms": setting.slo_ms,
            "options": {
                name: str(value) if isinstance(value, Path) else value
                for name, value in asdict(self).items()
                if name not in ("run_dir", "out")
            },
            "traffic": [asdict(one) for one in setting.traffic],
            "scores": findings.scores,
            "provenance": asdict(collect(device_fingerprint())),
        }
        (folder / RESULT).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        findings.figure.savefig(folder / PLOT, dpi=130)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is simulated."""

    title: str
    rate: float
    slo_ms: float
    fleet: Fleet
    traffic: list[Traffic]
    traces: Mapping[int, Requests]
    """By seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What came of it, in three forms."""

    scores: Mapping[str, Any]
    """For a JSON file."""
    table: Table
    figure: Figure


def render(title: str, traffic: list[Traffic], scores: Mapping[str, Mapping[int, Score]]) -> Table:
    """A line per policy: means over seeds, the spread between seeds behind what is compared."""

    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in traffic]))

    caption = (
        f"Means over {len(traffic)} traces; behind a sign, the standard deviation between them. Really drawn: "
        f"{mean('rate'):.0f} requests/s, gaps of cv2 {mean('cv2'):.1f}, dispersion of 100 ms counts "
        f"{mean('dispersion'):.1f}, peak {mean('peak_to_mean'):.1f} times the mean (Poisson: 1 and 1). Quality: R@1; "
        "of all, what was not met counts zero. Refused: at once; kept: met, of what was accepted."
    )
    table = Table(title=title, caption=caption)
    table.add_column("policy", no_wrap=True)
    for column in (
        "met",
        "quality of met",
        "of all",
        "refused",
        "kept",
        "p50 ms",
        "p99 ms",
        "batch",
        "decision us, p50 / p99",
    ):
        table.add_column(column, justify="right")
    for name, by_seed in scores.items():
        average, spread = mean_scores(by_seed)
        table.add_row(
            name,
            f"{average.attainment:.1%} \u00b1 {spread.attainment:.1%}",
            f"{average.quality_met:.3f} \u00b1 {spread.quality_met:.3f}",
            f"{average.quality_all:.3f}",
            f"{average.refused:.1%}",
            f"{average.kept:.1%}",
            f"{average.p50_ms:.1f}",
            f"{average.p99_ms:.1f}",
            f"{average.mean_batch:.1f}",
            f"{average.decision_p50_us:.0f} / {average.decision_p99_us:.0f}",
        )
    return table


def pareto(title: str, scores: Mapping[str, Mapping[int, Score]]) -> Figure:
    """Attainment against the quality of what was met: up and to the right is better."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, by_seed in scores.items():
        average, spread = mean_scores(by_seed)
        axes.errorbar(
            100 * average.attainment,
            average.quality_met,
            xerr=100 * np.nan_to_num(spread.attainment),
            yerr=np.nan_to_num(spread.quality_met),
            fmt="*" if name == SERVED else "o",
            markersize=14 if name == SERVED else 7,
            capsize=2,
            label=name,
        )
    axes.set_xlabel("met within the objective, % of all requests")
    axes.set_ylabel("mean R@1 of what was met")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
