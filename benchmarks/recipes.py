"""Every recipe from one command: it trains through Ray, resumes exactly, and shows its terms in TensorBoard.

Each recipe takes a few steps with `elastic train`. Then the last checkpoint and what the run delivers are deleted in a
copy, as if it had been killed at the one before, and `elastic train --resume` goes on. Resumed exactly means: equal
weights and equal checkpoint, bit for bit, and equal records of every step taken again, times aside.

The time of a whole run is its number of steps at the median time of a step here.

    python benchmarks/recipes.py
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from elastic.checkpoint import MANIFEST, WEIGHTS, read_weights
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.recipes.find import RECIPES
from elastic.train.config import TrainConfig
from elastic.train.metrics import read_metrics

RESULTS = Path(__file__).parent / "results" / "recipes.json"
TIMES = {"step_s", "images_per_s", "data_wait_fraction"}
"""Fields of a record that are not a function of configuration and seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Train, interrupt and resume recipes."""

    recipes: tuple[str, ...] = tuple(name for name, recipe in RECIPES.items() if isinstance(recipe(), TrainConfig))
    """Names of recipes of encoders."""
    steps: int = 24
    """Steps of each run; a multiple of eight."""


def measure(name: str, steps: int, folder: Path) -> dict[str, Any]:
    """Train one recipe, resume a copy of it at half, and compare."""
    whole, cut = folder / "whole", folder / "cut"
    flags = ["--steps", str(steps), "--checkpoint-every", str(steps // 2), "--log-every", str(steps // 8)]
    elastic_train(name, "--run-dir", str(whole), "--num-threads", "1", *flags)
    shutil.copytree(whole, cut)
    shutil.rmtree(last_checkpoint(cut))
    (cut / WEIGHTS).unlink()
    (cut / MANIFEST).unlink()
    elastic_train("--resume", "--run-dir", str(cut))
    records = read_metrics(whole)
    return {
        "resumed": {
            "weights": same(read_weights(whole / WEIGHTS), read_weights(cut / WEIGHTS)),
            "state": same(load_state(whole), load_state(cut)),
            "records": [untimed(record) for record in records] == [untimed(record) for record in read_metrics(cut)],
        },
        "step_s": statistics.median(record["step_s"] for record in records[1:]),
        "images_per_s": statistics.median(record["images_per_s"] for record in records[1:]),
    } | shown(whole)


def elastic_train(*arguments: str) -> None:
    """The command as a user types it, quiet unless it fails.

    Raises:
        RuntimeError: it failed; with what it printed.
    """
    command = [sys.executable, "-m", "elastic", "train", *arguments]
    # Ray starts its workers at a low priority, and this machine is not idle.
    environment = os.environ | {"RAY_worker_niceness": "0"}
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")


def last_checkpoint(run: Path) -> Path:
    """The directory of the newest checkpoint."""
    return max((run / "checkpoints").iterdir())


def load_state(run: Path) -> dict[str, Any]:
    """What the newest checkpoint holds."""
    return torch.load(last_checkpoint(run) / "state.pt", weights_only=True)


def same(left: Any, right: Any) -> bool:
    """Whether two nests of tensors and plain values are equal, bit for bit."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its times."""
    return {name: value for name, value in record.items() if name not in TIMES}


def shown(run: Path) -> dict[str, Any]:
    """What TensorBoard shows: terms, the submodels and widths they are split by, and how many curves there are."""
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    curves = board.Tags()["scalars"]
    terms, granularities, widths = set[str](), set[str](), set[int]()
    for curve in curves:
        parts = curve.split("/")
        if len(parts) != 3:  # objective/term/granularity
            continue
        term, *width = parts[1].split("@")
        if not all(value.isdigit() for value in width):  # a watched value, not a term of the loss
            continue
        terms.add(f"{parts[0]}/{term}")
        granularities.add(parts[2])
        widths |= {int(value) for value in width}
    return {
        "curves": len(curves),
        "terms": sorted(terms),
        "granularities": sorted(granularities),
        "widths": sorted(widths),
    }


def render(found: dict[str, dict[str, Any]]) -> Table:
    """The results as a table."""
    table = Table("recipe", "resumed exactly", "images/s", "whole run", "terms", "submodels", "widths", "curves")
    for name, row in found.items():
        wrong = [part for part, equal in row["resumed"].items() if not equal]
        hours = RECIPES[name]().steps * row["step_s"] / 3600
        table.add_row(
            name,
            f"NO: {', '.join(wrong)}" if wrong else "yes",
            f"{row['images_per_s']:.0f}",
            f"{hours * 60:.0f} min" if hours < 2 else f"{hours:.1f} h",
            "\n".join(row["terms"]),
            " ".join(row["granularities"]),
            " ".join(map(str, row["widths"])),
            str(row["curves"]),
        )
    return table


def main() -> None:
    """Measure, print, and write the results; they are written after every recipe."""
    options, console = tyro.cli(Options), Console()
    found: dict[str, dict[str, Any]] = {}
    for name in options.recipes:
        with console.status(f"{name} ({len(found) + 1}/{len(options.recipes)})"), TemporaryDirectory() as folder:
            found[name] = measure(name, options.steps, Path(folder))
        results = {
            "options": asdict(options),
            "provenance": asdict(collect(device_fingerprint())),
            "recipes": found,
        }
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(render(found))


if __name__ == "__main__":
    main()
