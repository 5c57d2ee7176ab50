"""The verb `elastic select`: what the server would choose for a latency objective, and why."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from elastic.checkpoint import MANIFEST, Manifest, resolve_run
from elastic.errors import InvalidRequest, SloInfeasible
from elastic.model.config import EncoderConfig
from elastic.profile.device import device_fingerprint
from elastic.profile.flops import count_image, count_text
from elastic.profile.store import load_latency, load_quality
from elastic.profile.tables import LatencyTable, Modality, Quantile
from elastic.select import Candidate, allowed, candidates, choose, pareto_front
from elastic.submodel import Choice, Slo, Space, Submodel


@dataclass(frozen=True, kw_only=True, slots=True)
class Select:
    """Show the best submodel and embedding width for a latency objective, on this machine.

    Prints the Pareto front of the measured tables (no other submodel is both faster and better), the choice, and the
    reason for it. Needs `elastic profile` and `elastic evaluate` of the same run.

    Example: elastic select runs/icons --latency-slo-ms 5 --batch 8 --min-quality 0.4
    """

    run_dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """Run directory; left out, the model inside the package."""
    latency_slo_ms: float
    """The encoder call has to fit in this many milliseconds."""
    batch: int = 1
    """Items per encoder call."""
    min_quality: float | None = None
    """Least acceptable R@1 (mean over domains), between 0 and 1."""
    embed_dim: int | None = None
    """Exactly this embedding width; by default the full one."""
    min_embed_dim: int | None = None
    """Widths from this one on."""
    max_embed_dim: int | None = None
    """Widths up to this one."""
    modality: Modality = "image"
    """Which tower runs: image queries, or text queries."""
    quantile: Quantile = "p90"
    """Which measured time has to fit: the mean, or the median, 90th or 99th percentile."""
    index: str | None = None
    """Submodel that embedded the index that is searched (S, XL, ffn=...); by default the largest one evaluated."""
    isotonic: bool = False
    """Pool measurement noise away first, so that no larger submodel or batch counts as faster than a smaller one."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Use the rows of this dtype, where several were profiled."""
    num_threads: int | None = None
    """Use the rows of this thread count, where several were profiled."""
    force_foreign_tables: bool = False
    """Decide from latencies of another device, too."""

    def run(self) -> None:
        """Print the front, the choice and its reason; fail when nothing meets the objective."""
        slo = self._slo()
        run = resolve_run(self.run_dir)
        config = Manifest.from_json(run / MANIFEST).encoder
        space = config.space if self.modality == "image" else config.text_space
        if space is None:
            raise InvalidRequest("modality", "this model has no text tower; use --modality image")
        latency = load_latency(run, device_fingerprint(), any_device=self.force_foreign_tables)
        found = candidates(
            self._narrow(latency),
            load_quality(run),
            batch_size=self.batch,
            modality=self.modality,
            quantile=self.quantile,
            index_submodel=None if self.index is None else config.space.parse(self.index),
        )
        front = pareto_front(allowed(found, slo))
        console = Console()
        try:
            choice = choose(found, slo)
        except SloInfeasible:
            console.print(self._render(front, None, config, space))
            raise
        console.print(self._render(front, choice, config, space))
        chosen = f"{space.name(choice.submodel)} at embed_dim {choice.embed_dim}"
        console.print(f"[bold green]{chosen}[/bold green]: {choice.reason}", soft_wrap=True)

    def _slo(self) -> Slo:
        return Slo(
            latency_ms=self.latency_slo_ms,
            min_quality=self.min_quality,
            embed_dim=self.embed_dim,
            min_embed_dim=self.min_embed_dim,
            max_embed_dim=self.max_embed_dim,
        )

    def _narrow(self, latency: LatencyTable) -> LatencyTable:
        asked = {"dtype": self.dtype, "num_threads": self.num_threads}
        narrowed = latency.where(**{name: value for name, value in asked.items() if value is not None})
        return narrowed.isotonic() if self.isotonic else narrowed

    def _render(self, front: Sequence[Candidate], choice: Choice | None, config: EncoderConfig, space: Space) -> Table:
        table = Table(title=f"Pareto front of the {self.modality} encoder at batch {self.batch}")
        for name in ("submodel", "embed_dim", "MFLOPs", f"{self.quantile} ms", "R@1", ""):
            table.add_column(name, justify="left" if name in ("submodel", "") else "right")
        for point in front:
            is_chosen = choice is not None and (point.submodel, point.embed_dim) == (choice.submodel, choice.embed_dim)
            cells = (
                space.name(point.submodel),
                str(point.embed_dim),
                f"{self._flops(config, point.submodel) / 1e6:.1f}",
                f"{point.latency_ms:.2f}",
                f"{point.quality:.4f}",
                "<- chosen" if is_chosen else self._verdict(point),
            )
            table.add_row(*cells, style="bold green" if is_chosen else None)
        return table

    def _flops(self, config: EncoderConfig, submodel: Submodel) -> int:
        count = count_image if self.modality == "image" else count_text
        return count(config, submodel).flops

    def _verdict(self, point: Candidate) -> str:
        if point.latency_ms > self.latency_slo_ms:
            return "too slow"
        return "" if self.min_quality is None or point.quality >= self.min_quality else "not good enough"
