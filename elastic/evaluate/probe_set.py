"""The rows that `elastic probe` fits on and tests on, with whatever a source says about them.

One class is one (domain, label), as in retrieval. Zero-shot knows names only, so classes of one name are one there.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Int

from elastic.data.dense import DenseSet, load_dense_set
from elastic.data.parquet import ParquetImages
from elastic.data.schema import DEPTH, SEGMENTS, SPLITS
from elastic.data.source import Source
from elastic.data.sources import open_source
from elastic.errors import DataError
from elastic.evaluate.metrics import NO_CLASS, class_numbers

ClassNames: TypeAlias = Literal["label", "caption"]
"""What a class is called: its label, or the caption that most of its images carry."""

_SEED = 0  # of the images that are kept where there are more than wanted


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Rows of one split; position in these arrays is the image."""

    row_ids: Int[np.ndarray, " image"]
    classes: Int[np.ndarray, " image"]
    """One number per (domain, label), the same in every part; `NO_CLASS` without a label."""
    labels: tuple[str | None, ...]
    captions: tuple[tuple[str, ...], ...]
    """The written caption of each image, if it has one."""
    synthetic_captions: tuple[tuple[str, ...], ...]
    """The machine-made ones."""

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def labelled(self) -> Int[np.ndarray, " labelled"]:
        """Positions of the images that have a label."""
        return np.flatnonzero(self.classes != NO_CLASS)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeSet:
    """Some domains of one source."""

    source: Source
    domains: tuple[str, ...]
    split: str
    """The part that is tested."""
    parts: dict[str, Part]
    """Every split; empty where the source has none of its rows."""

    @property
    def train(self) -> Part:
        """What classifiers are fitted on."""
        return self.parts["train"]

    @property
    def tested(self) -> Part:
        """What is judged."""
        return self.parts[self.split]


@dataclass(frozen=True, kw_only=True, slots=True)
class Named:
    """Images of a part for zero-shot."""

    images: Int[np.ndarray, " named"]
    """Their positions in the part."""
    classes: Int[np.ndarray, " named"]
    """Positions in `names`."""
    names: tuple[str, ...]
    """Distinct, sorted."""


def load_probe_set(location: str, split: str, domains: Sequence[str], max_images: int) -> ProbeSet:
    """Rows of every split, at most `max_images` of each; by default of the domains that the tested split has.

    Where there are more, those kept are drawn at random, the same ones every time.

    Raises:
        DataError: the source cannot be opened, or has no such rows to test.
    """
    source = open_source(location)
    columns = {name: source.metadata[name].to_pylist() for name in source.metadata.column_names}
    places = list(zip(columns["split"], columns["domain"], strict=True))
    there = {domain for its, domain in places if its == split}
    wanted = set(domains) or there
    if not wanted or wanted - there:
        asked = f"split {split!r}" + (f" and domains {sorted(wanted - there)}" if wanted else "")
        raise DataError(location, f"no rows of {asked} (domains of the split: {sorted(there)})", "choose others")
    columns["class"] = _classes(columns["domain"], columns["label"]).tolist()
    parts = {}
    for name in SPLITS:
        rows = [row for row, (its, domain) in enumerate(places) if its == name and domain in wanted]
        parts[name] = _part(columns, _at_most(max_images, rows))
    return ProbeSet(source=source, domains=tuple(sorted(wanted)), split=split, parts=parts)


def dense_columns(source: Source) -> frozenset[str]:
    """Which labels of pixels a source carries, `segments` and `depth_mm`."""
    if not isinstance(source.images, ParquetImages):
        return frozenset()
    tables = source.images.read_columns([SEGMENTS, DEPTH])
    return frozenset(name for table in tables for name in table.column_names)


def load_dense(data: ProbeSet) -> dict[str, DenseSet]:
    """Labels of pixels of the training and the tested part, in the order of their images.

    Raises:
        DataError: see `load_dense_set`.
    """
    return {split: _dense_part(data, split) for split in ("train", data.split)}


def name_classes(part: Part, class_names: ClassNames) -> Named:
    """The images whose class has a name; of several captions carried equally often it is the first by alphabet."""
    found: dict[int, Counter[str]] = {}
    for image in part.labelled.tolist():
        label = part.labels[image]
        texts = part.captions[image] if class_names == "caption" else (() if label is None else (label,))
        found.setdefault(int(part.classes[image]), Counter()).update(texts)
    name_of = {number: min(counts, key=lambda t, c=counts: (-c[t], t)) for number, counts in found.items() if counts}
    names = sorted(set(name_of.values()))
    images = np.array([image for image in part.labelled if int(part.classes[image]) in name_of], np.int64)
    position = {name: place for place, name in enumerate(names)}
    classes = np.array([position[name_of[number]] for number in part.classes[images].tolist()], np.int64)
    return Named(images=images, classes=classes, names=tuple(names))


def _classes(domains: Sequence[str], labels: Sequence[str | None]) -> Int[np.ndarray, " row"]:
    named = [(row, label) for row, label in enumerate(labels) if label is not None]
    classes = np.full(len(labels), NO_CLASS)
    classes[[row for row, _ in named]] = class_numbers([domains[row] for row, _ in named], [text for _, text in named])
    return classes


def _part(columns: Mapping[str, Sequence[Any]], row_ids: Int[np.ndarray, " image"]) -> Part:
    def take(name: str) -> list[Any]:
        return [columns[name][row] for row in row_ids]

    return Part(
        row_ids=row_ids,
        classes=np.array(take("class"), np.int64),
        labels=tuple(take("label")),
        captions=tuple((text,) if text else () for text in take("caption")),
        synthetic_captions=tuple(tuple(texts or ()) for texts in take("synthetic_captions")),
    )


def _at_most(count: int, row_ids: Sequence[int]) -> Int[np.ndarray, " row"]:
    # Not every n-th row: sets may go through their classes in turn.
    drawn = np.random.default_rng(_SEED).permutation(np.array(row_ids, np.int64))[:count]
    return np.sort(drawn)


def _dense_part(data: ProbeSet, split: str) -> DenseSet:
    whole = load_dense_set(data.source.name, split, data.domains)
    kept = np.searchsorted(whole.row_ids, data.parts[split].row_ids)
    return replace(
        whole,
        row_ids=whole.row_ids[kept],
        segments=whole.segments[kept],
        instances=None,  # which no probe reads
        depth_mm=None if whole.depth_mm is None else whole.depth_mm[kept],
    )
