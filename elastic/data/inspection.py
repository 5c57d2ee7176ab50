"""What a person wants to know about a source before training on it: what it holds, and what is wrong with it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from elastic.data.decode import DEFAULT_MAX_PIXELS, decode
from elastic.data.schema import SPLITS
from elastic.data.source import Source
from elastic.errors import DataError

READ_ROWS = 256
"""Images read at a time."""
MAX_EXAMPLES = 20
"""Broken images that a report names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Sizes of a part of a source."""

    num_images: int
    num_classes: int
    num_captions: int
    """Distinct captions, synthetic ones not counted."""
    num_uncaptioned: int
    """Rows with neither a caption nor a synthetic one."""
    num_unlabelled: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """An image that cannot be used."""

    row_id: int
    problem: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What decoding images of a source showed."""

    num_rows: int
    num_checked: int
    num_broken: int
    examples: tuple[Broken, ...]
    """The first broken ones."""
    notes: tuple[str, ...]
    """What is unusual about the metadata, and what it rules out."""

    @property
    def broken_fraction(self) -> float:
        """Share of the checked images that are broken."""
        return self.num_broken / self.num_checked


def count(source: Source) -> dict[tuple[str, str], Counts]:
    """Sizes by (domain, split), sorted by domain and in the order of the splits; empty parts are left out."""
    names = ("domain", "split", "label", "caption", "synthetic_captions")
    columns = {name: source.metadata[name].to_pylist() for name in names}
    rows_of: dict[tuple[str, str], list[int]] = {}
    for row, key in enumerate(zip(columns["domain"], columns["split"], strict=True)):
        rows_of.setdefault(key, []).append(row)
    ordered = sorted(rows_of, key=lambda key: (key[0], SPLITS.index(key[1])))
    return {key: _count(columns, rows_of[key]) for key in ordered}


def _count(columns: dict[str, list], rows: list[int]) -> Counts:
    labels = [columns["label"][row] for row in rows]
    captions = [columns["caption"][row] for row in rows]
    uncaptioned = [row for row in rows if columns["caption"][row] is None and not columns["synthetic_captions"][row]]
    return Counts(
        num_images=len(rows),
        num_classes=len(set(labels) - {None}),
        num_captions=len(set(captions) - {None}),
        num_uncaptioned=len(uncaptioned),
        num_unlabelled=labels.count(None),
    )


def check(
    source: Source,
    num_images: int | None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_image: Callable[[], object] = lambda: None,
) -> Report:
    """Decode images of a source, all of them or an even sample, and look at its metadata.

    Raises:
        DataError: the source became unreadable; broken images are reported instead.
    """
    row_ids = np.arange(len(source))
    if num_images is not None and num_images < len(source):
        row_ids = np.linspace(0, len(source) - 1, num_images).round().astype(np.int64)
    num_broken, examples = 0, []
    for row_id, problem in _decode_rows(source, row_ids, max_pixels):
        if problem is not None:
            num_broken += 1
            if len(examples) < MAX_EXAMPLES:
                examples.append(Broken(row_id=row_id, problem=problem))
        on_image()
    return Report(
        num_rows=len(source),
        num_checked=len(row_ids),
        num_broken=num_broken,
        examples=tuple(examples),
        notes=tuple(_notes(count(source))),
    )


def _decode_rows(source: Source, row_ids: np.ndarray, max_pixels: int) -> Iterator[tuple[int, str | None]]:
    """Each row with what is wrong with its image, if anything."""
    for start in range(0, len(row_ids), READ_ROWS):
        part = row_ids[start : start + READ_ROWS]
        for row_id, encoded in zip(part.tolist(), source.read_images(part), strict=True):
            try:
                # The canvas is not used, so its size only has to be cheap.
                decode(encoded, 32, max_pixels)
            except DataError as error:
                yield row_id, error.problem
            else:
                yield row_id, None


def _notes(counts: dict[tuple[str, str], Counts]) -> Iterator[str]:
    present = {split for _, split in counts}
    for split in SPLITS:
        if split not in present:
            use = {"train": "train on it", "val": "choose between runs on it", "test": "evaluate on it"}[split]
            yield f"no rows of split {split!r}: you cannot {use}"
    total = sum(part.num_images for part in counts.values())
    unlabelled = sum(part.num_unlabelled for part in counts.values())
    if unlabelled:
        yield f"{unlabelled:,} of {total:,} rows have no label: class-balanced sampling and evaluation leave them out"
    uncaptioned = sum(part.num_uncaptioned for part in counts.values())
    if uncaptioned:
        yield f"{uncaptioned:,} of {total:,} rows have no caption: objectives on text need one in every row"
    singles = sum(part.num_classes == part.num_images - part.num_unlabelled > 0 for part in counts.values())
    if singles:
        yield f"{singles} of {len(counts)} parts have one image per class: nothing to retrieve but the query itself"
