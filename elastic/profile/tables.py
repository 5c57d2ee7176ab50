"""The measured tables: what each submodel costs in milliseconds, and what it is worth in retrieval quality.

Rows are typed; files are Parquet with the provenance in their metadata, so a table says on which device, by which
code and with which versions it was made. `elastic.select` and the server decide from these tables alone. Nothing
here imports torch or ray.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from elastic.errors import ProfileError
from elastic.profile.provenance import Device, Provenance
from elastic.submodel import Submodel

Modality: TypeAlias = Literal["image", "text"]
MODALITIES: tuple[Modality, ...] = ("image", "text")
Quantile: TypeAlias = Literal["mean", "p50", "p90", "p99"]
Task: TypeAlias = Literal["image_retrieval", "text_to_image"]
Metric: TypeAlias = Literal["recall_at_1", "mmp_at_5"]

MEAN = "mean"
"""`QualityRow.domain` of the unweighted mean over domains (macro): the headline number."""
ALL = "all"
"""`QualityRow.domain` of the mean over all queries (micro)."""

_METADATA_KEY = b"elastic.provenance"


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyRow:
    """Time of one encoder call on `batch_size` preprocessed items, measured `n` times."""

    device: str
    """`str(Device)` of the machine."""
    dtype: str
    num_threads: int
    """Threads that torch used inside one call."""
    modality: Modality
    submodel: Submodel
    """In the space of the tower of that modality."""
    batch_size: int
    n: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    max_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityRow:
    """Retrieval quality of queries embedded by one submodel against an index embedded by another."""

    task: Task
    query_submodel: Submodel
    """In the text tower's space for `text_to_image`, else in the image tower's."""
    index_submodel: Submodel
    embed_dim: int
    domain: str
    """A domain, `mean` (over domains) or `all` (over queries). The index always holds every domain."""
    recall_at_1: float
    mmp_at_5: float
    num_queries: int


class LatencyTable:
    """Measured latencies of one device, and the times they predict for batch sizes in between."""

    def __init__(self, rows: Iterable[LatencyRow], provenance: Provenance) -> None:
        self.rows = tuple(rows)
        self.provenance = provenance
        self._curves: dict[tuple[Modality, Submodel], list[LatencyRow]] = defaultdict(list)
        for row in sorted(self.rows, key=lambda row: row.batch_size):
            self._curves[row.modality, row.submodel].append(row)

    def submodels(self, modality: Modality = "image") -> list[Submodel]:
        """Measured submodels of one tower, ascending in total FFN size."""
        return _ascending(row.submodel for row in self.rows if row.modality == modality)

    def batch_sizes(self, modality: Modality = "image") -> list[int]:
        """Measured batch sizes of one tower, ascending."""
        return sorted({row.batch_size for row in self.rows if row.modality == modality})

    def where(self, **conditions: object) -> "LatencyTable":
        """The rows whose named columns have these values: `table.where(dtype="float32", num_threads=1)`."""
        keep = [row for row in self.rows if all(getattr(row, name) == value for name, value in conditions.items())]
        return LatencyTable(keep, self.provenance)

    def require_device(self, here: Device, *, force: bool = False) -> None:
        """Accept a table that was measured on this device; `force` accepts any.

        Raises:
            ProfileError: measured elsewhere; the message names what differs.
        """
        differences = self.provenance.device.differences(here)
        if differences and not force:
            problem = f"measured on another device ({'; '.join(differences)})"
            raise ProfileError("latency", problem, "run `elastic profile` here, or pass --force-foreign-tables")

    def predict(self, modality: Modality, submodel: Submodel, batch_size: int, quantile: Quantile = "p90") -> float:
        """Milliseconds of one call, linear between measured batch sizes and never falling as the batch grows.

        A measured value below that of a smaller batch is noise, so the larger of the two stands for both.

        Raises:
            ProfileError: submodel not measured, batch size outside the measured range, or rows of several
                dtypes or thread counts that `where` has to narrow down first.
        """
        curve = self._curve(modality, submodel)
        sizes = [row.batch_size for row in curve]
        if not sizes[0] <= batch_size <= sizes[-1]:
            problem = f"{submodel} at batch {batch_size} is outside the measured {sizes[0]}..{sizes[-1]}"
            raise ProfileError("latency", problem, "profile that batch size, or split the batch")
        times = list(accumulate((_time_ms(row, quantile) for row in curve), max))
        above = bisect_left(sizes, batch_size)
        if sizes[above] == batch_size:
            return times[above]
        below = above - 1
        share = (batch_size - sizes[below]) / (sizes[above] - sizes[below])
        return times[below] + share * (times[above] - times[below])

    def isotonic(self) -> "LatencyTable":
        """The same table with noise pooled away: no time falls as the submodel or the batch grows.

        Pool-adjacent-violators (least squares), first over submodels in ascending size at each batch size, then
        over batch sizes. The second pass keeps the order that the first made, because isotonic regression is
        itself monotone. Meant for noisy machines, and only for submodels of which each contains the one before
        (the uniform ones and `Space.mixes`). `min_ms` and `max_ms` stay as measured.
        """
        rows = {(row.modality, row.submodel, row.batch_size): row for row in self.rows}
        assert len(rows) == len(self.rows), "narrow to one dtype and thread count before pooling"
        for modality in MODALITIES:
            chain, sizes = self.submodels(modality), self.batch_sizes(modality)
            by_batch = [[(modality, submodel, size) for submodel in chain] for size in sizes]
            by_submodel = [[(modality, submodel, size) for size in sizes] for submodel in chain]
            for keys in (*by_batch, *by_submodel):
                _pool(rows, [key for key in keys if key in rows])
        return LatencyTable(rows.values(), self.provenance)

    def update(self, newer: "LatencyTable") -> "LatencyTable":
        """The rows of a newer measurement, and of this table those of other dtypes and thread counts."""
        assert self.provenance.device == newer.provenance.device, "one table holds one device"
        replaced = {(row.dtype, row.num_threads) for row in newer.rows}
        kept = [row for row in self.rows if (row.dtype, row.num_threads) not in replaced]
        return LatencyTable([*kept, *newer.rows], newer.provenance)

    def save(self, path: Path) -> None:
        """Write Parquet that `load` reads back."""
        _write(path, self.rows, LatencyRow, self.provenance)

    @classmethod
    def load(cls, path: Path) -> "LatencyTable":
        """Read what `save` wrote.

        Raises:
            ProfileError: no such file, or not a latency table.
        """
        return cls(*_read(path, LatencyRow, "latency", "run `elastic profile`"))

    def _curve(self, modality: Modality, submodel: Submodel) -> list[LatencyRow]:
        curve = self._curves.get((modality, submodel), [])
        if not curve:
            problem = f"no {modality} row for {submodel}"
            raise ProfileError("latency", problem, "profile that submodel, or choose a measured one")
        if len({(row.dtype, row.num_threads) for row in curve}) > 1:
            problem = f"{submodel} was measured with several dtypes or thread counts"
            raise ProfileError("latency", problem, "narrow the table with where(dtype=..., num_threads=...)")
        return curve


class QualityTable:
    """Measured retrieval quality by (query submodel, index submodel, embed_dim)."""

    def __init__(self, rows: Iterable[QualityRow], provenance: Provenance) -> None:
        self.rows = tuple(rows)
        self.provenance = provenance
        self._cells = {(r.task, r.query_submodel, r.index_submodel, r.embed_dim, r.domain): r for r in self.rows}

    def row(
        self,
        query_submodel: Submodel,
        index_submodel: Submodel,
        embed_dim: int,
        *,
        task: Task = "image_retrieval",
        domain: str = MEAN,
    ) -> QualityRow:
        """One measured cell.

        Raises:
            ProfileError: that combination was not evaluated.
        """
        found = self._cells.get((task, query_submodel, index_submodel, embed_dim, domain))
        if found is None:
            problem = f"no {task} row for query {query_submodel}, index {index_submodel}, embed_dim {embed_dim}"
            raise ProfileError("quality", f"{problem}, domain {domain}", "run `elastic evaluate`")
        return found

    def query_submodels(self, task: Task = "image_retrieval") -> list[Submodel]:
        """Evaluated query submodels, ascending in total FFN size."""
        return _ascending(row.query_submodel for row in self.rows if row.task == task)

    def index_submodels(self, task: Task = "image_retrieval") -> list[Submodel]:
        """Evaluated index submodels, ascending in total FFN size."""
        return _ascending(row.index_submodel for row in self.rows if row.task == task)

    def embed_dims(self, task: Task = "image_retrieval") -> list[int]:
        """Evaluated widths, ascending."""
        return sorted({row.embed_dim for row in self.rows if row.task == task})

    def domains(self, task: Task = "image_retrieval") -> list[str]:
        """Evaluated domains by name, without the two kinds of mean."""
        return sorted({row.domain for row in self.rows if row.task == task} - {MEAN, ALL})

    def has(self, query_submodel: Submodel, index_submodel: Submodel, embed_dim: int, task: Task) -> bool:
        """Whether the mean over domains was evaluated for this combination."""
        return (task, query_submodel, index_submodel, embed_dim, MEAN) in self._cells

    def save(self, path: Path) -> None:
        """Write Parquet that `load` reads back."""
        _write(path, self.rows, QualityRow, self.provenance)

    @classmethod
    def load(cls, path: Path) -> "QualityTable":
        """Read what `save` wrote.

        Raises:
            ProfileError: no such file, or not a quality table.
        """
        return cls(*_read(path, QualityRow, "quality", "run `elastic evaluate`"))


def _ascending(submodels: Iterable[Submodel]) -> list[Submodel]:
    return sorted(set(submodels), key=lambda submodel: (sum(submodel.ffn_dims), submodel.ffn_dims))


def _time_ms(row: LatencyRow, quantile: Quantile) -> float:
    return getattr(row, f"{quantile}_ms")


def _pool(rows: dict[Any, LatencyRow], keys: Sequence[Any]) -> None:
    """Replace the times at `keys` by their isotonic regression, each statistic on its own."""
    for quantile in ("mean", "p50", "p90", "p99"):
        smooth = pool_adjacent_violators([_time_ms(rows[key], quantile) for key in keys])
        for key, value in zip(keys, smooth, strict=True):
            rows[key] = replace(rows[key], **{f"{quantile}_ms": value})


def pool_adjacent_violators(values: Sequence[float]) -> list[float]:
    """The non-decreasing sequence nearest to `values` in least squares.

    Source: Barlow et al., Statistical Inference under Order Restrictions (1972), the PAV algorithm.
    """
    blocks: list[tuple[float, int]] = []  # (sum, count); block means ascend
    for value in values:
        total, count = value, 1
        while blocks and blocks[-1][0] * count > total * blocks[-1][1]:
            last_total, last_count = blocks.pop()
            total, count = total + last_total, count + last_count
        blocks.append((total, count))
    return [total / count for total, count in blocks for _ in range(count)]


def _schema(row_type: type) -> pa.Schema:
    arrow = {int: pa.int64(), float: pa.float64()}
    return pa.schema([(f.name, arrow.get(f.type, pa.string())) for f in fields(row_type)])


def _write(path: Path, rows: Sequence[Any], row_type: type, provenance: Provenance) -> None:
    def cell(value: object) -> object:
        return str(value) if isinstance(value, Submodel) else value

    records = [{f.name: cell(getattr(row, f.name)) for f in fields(row_type)} for row in rows]
    schema = _schema(row_type).with_metadata({_METADATA_KEY: provenance.to_json().encode()})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records, schema=schema), path)


def _read(path: Path, row_type: type, table: str, how: str) -> tuple[list[Any], Provenance]:
    if not path.is_file():
        raise ProfileError(table, f"{path} does not exist", f"{how} first")
    read = pq.read_table(path)
    stored: Mapping[bytes, bytes] = read.schema.metadata or {}
    if _METADATA_KEY not in stored or not read.schema.equals(_schema(row_type)):
        raise ProfileError(table, f"{path} is not a {table} table of this version", f"{how} again")
    rows = [
        row_type(**{k: Submodel.parse(v) if k.endswith("submodel") else v for k, v in record.items()})
        for record in read.to_pylist()
    ]
    return rows, Provenance.from_json(stored[_METADATA_KEY].decode())
