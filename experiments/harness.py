"""What every experiment shares: short runs in this process, several seeds, paired comparison, results on disk.

An experiment is a set of arms. An arm is a function of a seed and a scratch folder that trains what it needs and
returns numbers by name. Every finished (arm, seed) is written to `results.json` at once, so an interrupted
experiment goes on where it was; a run's own metrics stay in the scratch folder.
"""

import json
import math
import multiprocessing
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from elastic.checkpoint import TOKENIZER, load_model
from elastic.data.feed import LocalFeed
from elastic.data.tokenizer import Tokenizer
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.train.config import TrainConfig
from elastic.train.loop import run
from elastic.train.preparation import check_data, feed_config, make_tokenizer
from elastic.train.record import Origin, write_record

RESULTS = "results.json"

Metrics: TypeAlias = dict[str, float]
Arm: TypeAlias = Callable[[int, Path], Metrics]
"""Trains and measures for one seed, with a folder for what it writes. A top-level function, as it is pickled."""

T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Two-sided 95 % quantiles of Student's t, by degrees of freedom."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How much of an experiment is run."""

    seeds: int = 3
    """Seeds 0, 1, ... of every arm."""
    processes: int = 1
    """Runs at a time; each uses one thread."""
    arms: tuple[str, ...] = ()
    """Only these arms; none means all."""
    scratch: Path = Path("runs/experiments")
    """Where runs are trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a run delivers: the averaged weights, as they would be served."""

    encoder: Encoder
    preprocess: Preprocess
    tokenizer: Tokenizer | None


def train(config: TrainConfig, seed: int, folder: Path) -> Trained:
    """Train with one worker and one thread in this process, as the workers of `elastic train` do.

    The batches are those of the Ray pipeline, bit for bit (`tests/data/test_pipeline.py`).
    """
    config = replace(config, seed=seed)
    run_dir = folder / config.name
    tokenizer = make_tokenizer(config, check_data(config))
    write_record(run_dir, config, Origin(), collect(device_fingerprint()))
    if tokenizer is not None:
        tokenizer.save(run_dir / TOKENIZER)
    run(config, run_dir, torch.device("cpu"), lambda weights: LocalFeed(feed_config(config, tokenizer, weights)))
    encoder, manifest, tokenizer = load_model(run_dir)
    return Trained(encoder=encoder, preprocess=manifest.preprocess, tokenizer=tokenizer)


def experiment(folder: Path, arms: Mapping[str, Arm], options: Options) -> dict[str, Any]:
    """Run what is not in the results yet; returns the results."""
    results = load(folder)
    done = {(run["arm"], run["seed"]) for run in results["runs"]}
    wanted = options.arms or tuple(arms)
    todo = [(arm, seed) for seed in range(options.seeds) for arm in wanted if (arm, seed) not in done]
    context = multiprocessing.get_context("spawn")
    console = Console()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(options.processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        task = progress.add_task(folder.name, total=len(todo))
        jobs = [pool.submit(_job, arms[arm], arm, seed, options.scratch / folder.name) for arm, seed in todo]
        for job in as_completed(jobs):
            results["runs"].append(job.result())
            save(folder, results)
            progress.advance(task)
            console.print(f"{job.result()['arm']}, seed {job.result()['seed']}: {job.result()['seconds']:.0f} s")
    return results


def _job(arm: Arm, name: str, seed: int, scratch: Path) -> dict[str, Any]:
    start = time.perf_counter()
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch) as folder:
        metrics = arm(seed, Path(folder))
    return {"arm": name, "seed": seed, "seconds": time.perf_counter() - start, "metrics": metrics}


def load(folder: Path) -> dict[str, Any]:
    """The results so far."""
    path = folder / RESULTS
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"provenance": asdict(collect(device_fingerprint())), "runs": []}


def save(folder: Path, results: dict[str, Any]) -> None:
    """Write the results, runs in order of arm and seed."""
    results["runs"].sort(key=lambda run: (run["arm"], run["seed"]))
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def present(
    question: str | None,
    folder: Path,
    arms: Mapping[str, Arm],
    report: Callable[["Runs"], str],
    plot: Callable[["Runs"], Figure],
) -> None:
    """Read the options, run what is missing, then write the report and the plot. `--help` tells the question."""
    import tyro  # only here: an experiment that reads its own options runs where there is none

    runs = Runs(experiment(folder, arms, tyro.cli(Options, description=question)))
    text = report(runs)
    (folder / "report.md").write_text(text, encoding="utf-8")
    plot(runs).savefig(folder / "plot.png", dpi=130)
    print(text)


def curves(lines: Mapping[str, Sequence["Estimate"]], places: Sequence[str], title: str, ylabel: str) -> Figure:
    """One line with error bars for each entry, from zero."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for label, estimates in lines.items():
        heights, errors = [e.mean for e in estimates], [e.half_width for e in estimates]
        axes.errorbar(places, heights, yerr=errors, marker="o", capsize=3, label=label)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.tick_params(axis="x", rotation=30 if len(places) > 8 else 0)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with a 95 % interval."""

    mean: float
    half_width: float
    """NaN with one seed."""

    def __str__(self) -> str:
        """A dash where nothing was measured."""
        return "-" if math.isnan(self.mean) else f"{self.mean:.3f} ± {self.half_width:.3f}"


@dataclass(frozen=True, slots=True)
class Runs:
    """The finished runs of an experiment, to be asked for numbers."""

    results: dict[str, Any] = field(repr=False)

    def values(self, arm: str, metric: str) -> dict[int, float]:
        """By seed."""
        return {
            run["seed"]: run["metrics"][metric]
            for run in self.results["runs"]
            if run["arm"] == arm and metric in run["metrics"]
        }

    def mean(self, arm: str, metric: str) -> Estimate:
        """Over the seeds of one arm."""
        return _estimate(list(self.values(arm, metric).values()))

    def difference(self, arm: str, base: str, metric: str, base_metric: str | None = None) -> Estimate:
        """Of two arms, paired by seed."""
        mine, theirs = self.values(arm, metric), self.values(base, base_metric or metric)
        return _estimate([mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())])


def _estimate(values: Sequence[float]) -> Estimate:
    count = len(values)
    if count == 0:
        return Estimate(math.nan, math.nan)
    spread = float(np.std(values, ddof=1)) / math.sqrt(count) * T_95[count - 1] if count > 1 else math.nan
    return Estimate(float(np.mean(values)), spread)


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; estimates are shown as mean and half width."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
