"""The verb `elastic profile`: measure the latency of every submodel on this machine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from elastic.checkpoint import load_model, resolve_run
from elastic.model.config import EncoderConfig
from elastic.profile.device import check_device
from elastic.profile.flops import count_image, count_text
from elastic.profile.latency import LatencyConfig, measure
from elastic.profile.store import latency_path, record_table
from elastic.profile.tables import MODALITIES, LatencyRow, LatencyTable, Modality
from elastic.submodel import Space, Submodel

_WIDE = 140
"""Columns of a terminal that has room for two numbers per cell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Measure how long every submodel takes on this machine, at every batch size.

    A call is timed from the preprocessed tensor to the numpy embedding. All submodels take turns in every round, in
    shuffled order, so that drift of the machine hits them alike. Writes `latency.parquet` into the run directory (for
    the model inside the package: into the user's cache), which `select` and `serve` decide from; rows of this device
    with another dtype or thread count are kept. Run it when the machine is otherwise idle.

    Example: elastic profile runs/icons --rounds 100
    """

    run_dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """Run directory; left out, the model inside the package."""
    latency: Annotated[LatencyConfig, tyro.conf.arg(name="")] = field(default_factory=LatencyConfig)
    """How to measure."""
    device: str = "cpu"
    """torch device: `cpu` or `cuda`."""
    out: Path | None = None
    """Where to write the table, if not into the run directory."""

    def run(self) -> None:
        """Measure, print the table, write it."""
        check_device(self.device)
        run = resolve_run(self.run_dir)
        encoder, manifest, _ = load_model(run)
        console = Console()
        with _progress(console) as progress:
            task = progress.add_task("measuring", total=self.latency.warmup_rounds + self.latency.rounds)
            table = measure(encoder, self.latency, device=self.device, on_round=lambda: progress.advance(task))
        path = self.out or latency_path(run)
        _merge(path, table).save(path)
        record_table(run, path)
        for modality in MODALITIES:
            if table.submodels(modality):
                console.print(render(table, manifest.encoder, modality, with_p90=console.width >= _WIDE))
        console.print(f"wrote [bold]{path}[/bold]")


def render(table: LatencyTable, config: EncoderConfig, modality: Modality, *, with_p90: bool) -> Table:
    """The latencies of one tower: a line per submodel, the median (and the p90, where there is room) per batch size."""
    space = config.space if modality == "image" else config.text_space
    assert space is not None
    count = count_image if modality == "image" else count_text
    first = table.rows[0]
    shown = Table(
        title=f"{modality} encoder, milliseconds per call by batch size: median{' / p90' if with_p90 else ''}",
        caption=f"{first.device}; {first.dtype}, {first.num_threads} thread(s), {first.n} calls each",
    )
    for name in ("submodel", "params", "MFLOPs", *(str(size) for size in table.batch_sizes(modality))):
        shown.add_column(name, justify="left" if name == "submodel" else "right", no_wrap=True)
    cells = {(row.submodel, row.batch_size): row for row in table.rows if row.modality == modality}
    for submodel in table.submodels(modality):
        cost = count(config, submodel)
        times = [_times(cells[submodel, size], with_p90) for size in table.batch_sizes(modality)]
        shown.add_row(_label(space, submodel), f"{cost.params / 1e6:.2f}M", f"{cost.flops / 1e6:.1f}", *times)
    return shown


def _merge(path: Path, table: LatencyTable) -> LatencyTable:
    """The new rows, beside those that this device measured before with another dtype or thread count."""
    if not path.is_file():
        return table
    before = LatencyTable.load(path)
    same_device = before.provenance.device == table.provenance.device
    return before.update(table) if same_device else table


def _label(space: Space, submodel: Submodel) -> str:
    name = space.name(submodel)
    return f"[bold]{name}[/bold]" if submodel.is_uniform else name


def _times(row: LatencyRow, with_p90: bool) -> str:
    values = (row.p50_ms, row.p90_ms) if with_p90 else (row.p50_ms,)
    return " / ".join(f"{value:.2f}" if value < 10 else f"{value:.1f}" for value in values)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rounds"))
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
