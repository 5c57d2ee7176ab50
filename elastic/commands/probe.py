"""The verb `elastic probe`: what an encoder is worth beyond retrieval."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from elastic.checkpoint import load_model, resolve_run
from elastic.evaluate.features import GlobalToken
from elastic.evaluate.probe import probe
from elastic.evaluate.probe_report import (
    PROBES_PLOT,
    PROBES_REPORT,
    explain,
    summarise,
    write_probes_plot,
    write_probes_report,
)
from elastic.evaluate.probe_result import PROBES, Probes, ProbeTask
from elastic.evaluate.probe_set import ClassNames
from elastic.evaluate.probe_tasks import ProbesConfig
from elastic.profile.device import check_device
from elastic.profile.store import inside_package

PLOTS = "plots"


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """Measure what the frozen features of every granularity are worth beyond retrieval.

    At every embedding width: classes by their name alone, captions and images that find each other, classes by their
    nearest training images. Of the tokens: classes, segments and depth by a linear layer. Beside each number stand
    what a guess reaches and what the same model reaches untrained. What model or data do not allow is left out, and the
    report says why. Writes probes.json, probes.md and plots/probes.png into the run directory.

    Example: elastic probe runs/joint --source scenes
    """

    run_dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """Run directory; left out, the model inside the package (results then go to ./runs/NAME)."""
    source: str = "scenes"
    """Data: `scenes` (built at first use, under a minute), `icons`, `rooms`, or a path as for `elastic evaluate`.
    Segments and depth need a Parquet source that has them."""
    split: Literal["val", "test"] = "test"
    """Rows that are tested; everything is fitted on `train`. Choose models on `val`, report `test`. The linear probe of
    classes needs `val` for its weight decay."""
    domains: tuple[str, ...] = ()
    """Only these domains; left out, all that the tested split has."""
    tasks: tuple[ProbeTask, ...] = ()
    """What to measure; left out, everything that is possible."""
    class_names: ClassNames = "label"
    """What zero-shot calls a class: its label, or (where labels are ids) the caption that most of its images carry."""
    token: GlobalToken = "cls_token"
    """Global token that linear probes read; the second class token is that of TIPS."""
    batch_size: int = 256
    """Images per encoder call."""
    max_images: int = 5000
    """Images of each split that are read at most, drawn at random but always alike; fewer make retrieval easier."""
    dense_steps: int = 400
    """Updates of the probes of segments and depth."""
    untrained: bool = True
    """Also measure a model of the same shape with fresh weights: only what beats it was learned. Costs as much as
    one more granularity of the full size."""
    device: str = "cpu"
    """torch device: `cpu` or `cuda`."""
    out: Path | None = None
    """Directory for the results, if not the run directory."""

    def run(self) -> None:
        """Measure, write the result, the report and the plot, print the table."""
        check_device(self.device)
        run = resolve_run(self.run_dir)
        encoder, manifest, tokenizer = load_model(run)
        console = Console()
        with _progress(console) as progress:
            bar = progress.add_task("", total=None)

            def on_progress(stage: str, done: int, total: int) -> None:
                progress.update(bar, description=stage, completed=done, total=total)

            encoder = encoder.to(self.device)
            found = probe(
                encoder, manifest.preprocess, tokenizer, self._config(), name=run.name, on_progress=on_progress
            )
        folder = self.out or (Path("runs") / run.name if inside_package(run) else run)
        save_probes(folder, found)
        console.print(render(found))
        for task, reason in found.not_measured.items():
            console.print(f"not measured: {task}, because {reason}", soft_wrap=True, markup=False, highlight=False)
        wrote = f"wrote [bold]{folder / PROBES_REPORT}[/bold], {PROBES} and {PLOTS}/{PROBES_PLOT}"
        console.print(wrote, soft_wrap=True)

    def _config(self) -> ProbesConfig:
        return ProbesConfig(
            source=self.source,
            split=self.split,
            domains=self.domains,
            tasks=self.tasks,
            class_names=self.class_names,
            token=self.token,
            batch_size=self.batch_size,
            max_images=self.max_images,
            dense_steps=self.dense_steps,
            untrained=self.untrained,
        )


def save_probes(folder: Path, found: Probes) -> None:
    """Write the result, the report and its plot."""
    folder.mkdir(parents=True, exist_ok=True)
    found.save(folder / PROBES)
    write_probes_report(folder / PROBES_REPORT, found, write_probes_plot(folder / PLOTS, found))


def render(found: Probes) -> Table:
    """Every metric beside what it is to be compared with, a column per granularity."""
    header, rows = summarise(found)
    table = Table(
        title=f"{found.run_name} on {found.source}/{found.split} ({found.num_images[found.split]:,} images)",
        caption=explain(found),
        box=SIMPLE,
        pad_edge=False,
    )
    table.padding = (0, 0, 0, 1)
    for place, title in enumerate(header):
        table.add_column(title, justify="right" if place else "left", no_wrap=place > 0)
    for row in rows:
        table.add_row(*row)
    return table


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
