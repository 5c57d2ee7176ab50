"""What a run's streams hold, numbered once: domains, instance classes, captions and the rows of each.

Made before step 0 on every worker from the sources' metadata alone, so that what cannot work fails there. Numbers
are places in sorted order: the same files give the same numbers, whatever the order of rows or streams.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from elastic.batch import NO_LABEL
from elastic.data.config import ClassBalanced, DataConfig, StreamConfig
from elastic.data.source import Source
from elastic.data.sources import open_source
from elastic.errors import DataError

NO_CAPTION_ID = NO_LABEL


@dataclass(frozen=True, slots=True)
class Groups:
    """Places of rows that share a number, group after group; rows without a number are in none."""

    numbers: Int[np.ndarray, " groups"]
    """Ascending."""
    order: Int[np.ndarray, " members"]
    """Places, ascending within a group."""
    starts: Int[np.ndarray, " bounds"]
    """Where each group begins in `order`, and the end."""

    @classmethod
    def of(cls, numbers: Int[np.ndarray, " rows"]) -> "Groups":
        """The groups of rows with these numbers, `NO_LABEL` where there is none."""
        order = np.argsort(numbers, kind="stable")
        order = order[np.count_nonzero(numbers == NO_LABEL) :]
        starts = np.flatnonzero(np.diff(numbers[order], prepend=NO_LABEL))
        return cls(numbers[order[starts]], order, np.append(starts, len(order)).astype(np.int64))

    def __len__(self) -> int:
        return len(self.numbers)

    def places(self, index: int) -> Int[np.ndarray, " rows"]:
        """Places of the rows of the `index`-th group."""
        return self.order[self.starts[index] : self.starts[index + 1]]


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamRows:
    """The rows of one stream. A *place* counts within these rows, a row id within the source."""

    config: StreamConfig
    row_ids: Int[np.ndarray, " rows"]
    """Ascending."""
    domains: Int[np.ndarray, " rows"]
    labels: Int[np.ndarray, " rows"]
    """`NO_LABEL` where there is none."""
    caption_ids: Int[np.ndarray, " rows"]
    """`NO_LABEL` where there is none."""
    captions: pa.Array
    synthetic_captions: pa.Array
    has_captions: bool
    """Whether every row has a caption or a synthetic one, so that any batch can be matched to text."""
    has_written_captions: bool
    """Whether every row has a caption that is not synthetic."""
    has_synthetic_captions: bool
    """Whether every row has a synthetic caption."""
    num_classes: int
    """Instance classes of this stream."""
    groups: Groups
    """Rows that belong together: of one class or, where batches are balanced by it, of one `caption_id`."""

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def name(self) -> str:
        """What the stream is called."""
        return self.config.name

    def places_like(self, place: int) -> Int[np.ndarray, " rows"]:
        """Places of the rows of the same group as a row, itself included; every place where it is in none."""
        number = _grouping(self.config, self.labels, self.caption_ids)[place]
        if number == NO_LABEL:
            return np.arange(len(self))
        return self.groups.places(int(np.searchsorted(self.groups.numbers, number)))

    @property
    def present(self) -> frozenset[str]:
        """Fields of `Batch` that this stream fills."""
        names = {"images", "row_ids", "domains"}
        if self.num_classes and self.config.shows_labels:
            names.add("labels")
        if (self.caption_ids != NO_CAPTION_ID).any():
            names.add("caption_ids")
        apart = self.config.captions == "both"
        if self.has_written_captions if apart else self.has_captions:
            names.add("captions")
        if apart and self.has_synthetic_captions:
            names.add("synthetic_captions")
        if self.config.local_crops is not None:
            names.add("local_images")
        return frozenset(names)


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """Numbers and rows of all streams."""

    domains: tuple[str, ...]
    """Sorted names; `Batch.domains` counts in them."""
    classes: tuple[tuple[str, str], ...]
    """Sorted (domain, label); `Batch.labels` counts in them."""
    streams: tuple[StreamRows, ...]
    """In the order of the configuration."""

    @property
    def num_classes(self) -> int:
        """Instance classes of all streams."""
        return len(self.classes)

    @property
    def class_domains(self) -> tuple[int, ...]:
        """Domain of each class."""
        index = {name: place for place, name in enumerate(self.domains)}
        return tuple(index[domain] for domain, _ in self.classes)

    @property
    def present(self) -> frozenset[str]:
        """Fields of `Batch` that every stream fills; the text fields also need a tokenizer."""
        return frozenset.intersection(*(stream.present for stream in self.streams))

    def texts(self) -> Iterator[str]:
        """Every caption and synthetic caption, to train a tokenizer on."""
        for stream in self.streams:
            for texts in (stream.captions, stream.synthetic_captions.flatten()):
                yield from (text for text in texts.to_pylist() if text is not None)


def open_catalog(config: DataConfig) -> tuple[Catalog, tuple[Source, ...]]:
    """The catalog of a configuration and the opened source of each stream.

    Raises:
        DataError: a source is unreadable, a domain is unknown, a split is empty, or a stream has too few classes
            for its sampling.
    """
    opened = {location: open_source(location) for location in {stream.source for stream in config.streams}}
    sources = tuple(opened[stream.source] for stream in config.streams)
    selected = [
        (stream, *select_rows(source, config.split, stream.domains))
        for stream, source in zip(config.streams, sources, strict=True)
    ]
    domains = sorted({name for _, _, rows in selected for name in rows["domain"].unique().to_pylist()})
    classes = sorted({key for _, _, rows in selected for key in _class_keys(rows) if key is not None})
    caption_ids = sorted({key for _, _, rows in selected for key in rows["caption_id"].unique().to_pylist() if key})
    numbers = _Numbers(domains, classes, caption_ids)
    streams = tuple(_number(stream, row_ids, rows, numbers) for stream, row_ids, rows in selected)
    return Catalog(domains=tuple(domains), classes=tuple(classes), streams=streams), sources


def select_rows(source: Source, split: str, domains: tuple[str, ...] = ()) -> tuple[Int[np.ndarray, " rows"], pa.Table]:
    """Row ids of one split and of some domains (none means all), ascending, and their metadata.

    Raises:
        DataError: a domain that the source does not have, or nothing left.
    """
    metadata = source.metadata
    known = sorted(metadata["domain"].unique().to_pylist())
    for name in domains:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(known)}"
            raise DataError(source.name, f"has no domain {name!r}", advice)
    chosen = metadata["split"].to_numpy() == split
    if domains:
        chosen &= np.isin(metadata["domain"].to_numpy(), domains)
    row_ids = np.flatnonzero(chosen)
    if len(row_ids) == 0:
        found = metadata["split"].value_counts().to_pylist()
        counts = ", ".join(f"{item['values']}: {item['counts']}" for item in found)
        where = f" in {', '.join(domains)}" if domains else ""
        raise DataError(source.name, f"has no rows of split {split!r}{where} (rows by split: {counts})", "set `split`")
    return row_ids, metadata.take(pa.array(row_ids))


@dataclass(frozen=True, slots=True)
class _Numbers:
    domains: list[str]
    classes: list[tuple[str, str]]
    caption_ids: list[str]


def _class_keys(rows: pa.Table) -> list[tuple[str, str] | None]:
    pairs = zip(rows["domain"].to_pylist(), rows["label"].to_pylist(), strict=True)
    return [None if label is None else (domain, label) for domain, label in pairs]


def _number(stream: StreamConfig, row_ids: np.ndarray, rows: pa.Table, numbers: _Numbers) -> StreamRows:
    class_number = {key: place for place, key in enumerate(numbers.classes)}
    labels = np.array([NO_LABEL if key is None else class_number[key] for key in _class_keys(rows)], np.int64)
    caption_ids = _places(rows["caption_id"], numbers.caption_ids)
    written, synthetic = _captioned(rows)
    result = StreamRows(
        config=stream,
        row_ids=row_ids,
        domains=_places(rows["domain"], numbers.domains),
        labels=labels,
        caption_ids=caption_ids,
        captions=rows["caption"].combine_chunks(),
        synthetic_captions=rows["synthetic_captions"].combine_chunks(),
        has_captions=bool((written | synthetic).all()),
        has_written_captions=bool(written.all()),
        has_synthetic_captions=bool(synthetic.all()),
        num_classes=len(np.unique(labels[labels != NO_LABEL])),
        groups=Groups.of(_grouping(stream, labels, caption_ids)),
    )
    sampling = stream.sampling
    if isinstance(sampling, ClassBalanced) and len(result.groups) < sampling.classes_per_batch:
        kind, column = ("classes", "labels") if sampling.by == "label" else ("captions", "caption_id")
        problem = f"stream {stream.name!r} has {len(result.groups)} {kind}, wanted {sampling.classes_per_batch} a batch"
        raise DataError(stream.source, problem, f"lower classes_per_batch, or sample it Shuffled if it has no {column}")
    return result


def _grouping(stream: StreamConfig, labels: np.ndarray, caption_ids: np.ndarray) -> np.ndarray:
    """What says which rows of a stream belong together."""
    sampling = stream.sampling
    return caption_ids if isinstance(sampling, ClassBalanced) and sampling.by == "caption_id" else labels


def _captioned(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have a caption, and which a synthetic one."""
    num_synthetic = rows["synthetic_captions"].combine_chunks().value_lengths().fill_null(0)
    return rows["caption"].is_valid().to_numpy(), num_synthetic.to_numpy(zero_copy_only=False) > 0


def _places(column: pa.ChunkedArray, names: list[str]) -> np.ndarray:
    index = {name: place for place, name in enumerate(names)}
    return np.array([index.get(name, NO_LABEL) for name in column.to_pylist()], np.int64)
