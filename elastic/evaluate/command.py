"""The verb `elastic evaluate`: measure the retrieval quality of every submodel and width."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from elastic.checkpoint import load_model, resolve_run
from elastic.evaluate.baselines import BaselineName
from elastic.evaluate.plots import write_plots
from elastic.evaluate.report import REPORT, write_report
from elastic.evaluate.result import BASELINE_LABELS, BASELINES, Evaluation, save_baselines
from elastic.evaluate.run import EvaluateConfig, OnProgress, evaluate
from elastic.lm import report as text_report
from elastic.lm.evaluation import LmEvaluation, evaluate_matlm, held_out_text
from elastic.model.storage import run_kind
from elastic.profile.device import check_device
from elastic.profile.store import QUALITY, SCORES, inside_package, record_table
from elastic.profile.tables import ALL, MEAN

PLOTS = "plots"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluate:
    """Measure what every submodel is worth.

    Of an encoder, how well it retrieves at every embedding width: every labelled image of a split searches all the
    others, of all domains; right means another image of the same class. Also measured: queries of a small submodel
    against the index of a large one, Mix'n'Match submodels, and captions against images where the model reads text.
    Writes quality.parquet (from which `select` and `serve` decide), baselines.json, report.md and plots/ into the run
    directory.

    Of a language model, how well it predicts the text that its run held out, and how often it predicts what the full
    model would. Writes scores.json, report.md and a plot.

    Example: elastic evaluate runs/icons --baselines chance pixels efficientnet_lite0
    """

    run_dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """Run directory; left out, the model inside the package (results then go to ./runs/NAME)."""
    source: str | None = None
    """Images: `icons` (inside the package, the default), a Parquet file or folder, an image folder with metadata, or
    tars. Text: what `elastic train` takes; left out, what the run held out."""
    split: Literal["train", "val", "test"] = "test"
    """Images of this split. Choose models on `val`, report `test`."""
    baselines: tuple[BaselineName, ...] = ("chance", "pixels")
    """What to put beside an encoder; `efficientnet_lite0` needs `pip install elastic[teachers]` and a minute."""
    batch_size: int = 256
    """Images per encoder call."""
    max_bad_fraction: float = 0.01
    """Images that cannot be decoded are left out and counted; a larger share of them is an error."""
    max_blocks: int = 0
    """Blocks of text to read; 0 reads all that is held out."""
    device: str = "cpu"
    """torch device: `cpu` or `cuda`."""
    out: Path | None = None
    """Directory for the results, if not the run directory."""

    def run(self) -> None:
        """Measure, write the table, the report and the plots, print a summary."""
        check_device(self.device)
        if self.run_dir is not None and run_kind(self.run_dir) == "decoder":
            self._evaluate_text(self.run_dir)
        else:
            self._evaluate_images()

    def _evaluate_images(self) -> None:
        run = resolve_run(self.run_dir)
        encoder, manifest, tokenizer = load_model(run)
        config = EvaluateConfig(
            source=self.source or "icons",
            split=self.split,
            baselines=self.baselines,
            batch_size=self.batch_size,
            max_bad_fraction=self.max_bad_fraction,
        )
        console = Console()
        with _progress(console) as on_progress:
            encoder = encoder.to(self.device)
            found = evaluate(encoder, manifest.preprocess, tokenizer, config, name=run.name, on_progress=on_progress)
        folder = self.out or (Path("runs") / run.name if inside_package(run) else run)
        save_evaluation(folder, found)
        record_table(run, folder / QUALITY)
        console.print(render(found))
        console.print(f"wrote [bold]{folder / REPORT}[/bold], {QUALITY}, {BASELINES} and {PLOTS}/", soft_wrap=True)

    def _evaluate_text(self, run: Path) -> None:
        console, folder = Console(), self.out or run
        text = held_out_text(run, self.source)
        with _progress(console) as on_progress:
            found = evaluate_matlm(
                run,
                text,
                device=torch.device(self.device),
                max_blocks=self.max_blocks,
                on_progress=partial(on_progress, "reading"),
            )
        folder.mkdir(parents=True, exist_ok=True)
        found.save(folder / SCORES)
        text_report.write_report(folder, found)
        console.print(render_text(found))
        names = f"[bold]{folder / text_report.REPORT}[/bold], {SCORES} and {text_report.PLOT}"
        console.print(f"wrote {names}", soft_wrap=True)


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


def render_text(found: LmEvaluation) -> Table:
    """Loss, agreement and cost of every granularity."""
    table = Table(title=f"{found.run_name} on {found.num_tokens:,} held-out tokens")
    table.add_column("", no_wrap=True)
    for title in ("nats/token", "perplexity", "nats/byte", "agreement", "KL", "params", "MFLOPs/token"):
        table.add_column(title, justify="right")
    for name, submodel in found.config.space.granularities.items():
        table.add_row(f"[bold]{name}[/bold] {submodel}", *text_report.row(found, submodel))
    return table


@contextmanager
def _progress(console: Console) -> Iterator[OnProgress]:
    """A bar while it lasts, and what moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=None)

        def on_progress(stage: str, done: int, total: int) -> None:
            progress.update(task, description=stage, completed=done, total=total)

        yield on_progress
