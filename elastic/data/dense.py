"""Images with a label at every pixel: one split of a Parquet source, for probes of patch features.

Beside the columns of `schema.ROW` a row carries PNGs of its image's own size, pixel on pixel:

- `segments`: 8-bit grey, the pixel's class number; 0 is background. The file's schema metadata names the classes:
  key `segment_names`, a JSON list whose position is the class number.
- `instances` (may be missing): 8-bit grey, which object the pixel belongs to; 0 is background.
- `depth_mm` (may be missing): 16-bit grey, distance in millimetres; 0 is unknown.

Images are square and all of one size, so that resizing the image and its labels keeps them aligned. Such sets are
made by programs: one broken image or label is an error here, not something to skip.
"""

import io
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt8, UInt16
from PIL import Image

from elastic.data.decode import FORMATS
from elastic.data.parquet import ParquetImages
from elastic.data.schema import DEPTH, INSTANCES, SEGMENT_NAMES_KEY, SEGMENTS
from elastic.data.source import Source
from elastic.data.sources import open_source
from elastic.errors import DataError

_MODES = {SEGMENTS: ("L", np.uint8), INSTANCES: ("L", np.uint8), DEPTH: ("I;16", np.uint16)}
"""Pillow's mode and the array type of each label."""
_ADVICE = "write the set anew"
_BLOCK = 1024  # images held at once while their sizes are checked


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseSet:
    """One split's rows and their labels; position in these arrays is the image."""

    source: Source
    split: str
    row_ids: Int[np.ndarray, " image"]
    segment_names: tuple[str, ...]
    """Names of the classes; position is the class number, 0 the background."""
    segments: UInt8[np.ndarray, "image size size"]
    """Class number of each pixel."""
    instances: UInt8[np.ndarray, "image size size"] | None
    """Object that each pixel belongs to, 0 for none."""
    depth_mm: UInt16[np.ndarray, "image size size"] | None
    """Distance of each pixel in millimetres, 0 where it is unknown."""

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def image_size(self) -> int:
        """Side of the stored images and their labels in pixels."""
        return self.segments.shape[1]


def load_dense_set(location: str, split: str, domains: Collection[str] = ()) -> DenseSet:
    """The images and labels of a split of a Parquet source, of some domains or by default of all.

    Raises:
        DataError: not Parquet, `segments` or its names are missing, there are no such rows, or an image or label is
            broken, of another size, or holds a class without a name.
    """
    source = open_source(location)
    row_ids = _rows(source, split, domains)
    labels, names = _label_columns(source)
    size = _common_size(source, row_ids)
    arrays = {
        name: _decode(labels[name].take(row_ids).to_pylist(), name, size, source, row_ids)
        for name in labels.column_names
    }
    largest = int(arrays[SEGMENTS].max())
    if largest >= len(names):
        raise DataError(location, f"segments hold class {largest}, {len(names)} classes have names", _ADVICE)
    return DenseSet(
        source=source,
        split=split,
        row_ids=row_ids,
        segment_names=names,
        segments=arrays[SEGMENTS],
        instances=arrays.get(INSTANCES),
        depth_mm=arrays.get(DEPTH),
    )


def _rows(source: Source, split: str, domains: Collection[str]) -> Int[np.ndarray, " image"]:
    columns = zip(source.metadata["split"].to_pylist(), source.metadata["domain"].to_pylist(), strict=True)
    wanted = [its_split == split and (not domains or domain in domains) for its_split, domain in columns]
    if not any(wanted):
        found = {name: sorted(source.metadata[name].unique().to_pylist()) for name in ("split", "domain")}
        asked = f"split {split!r} and domains {sorted(domains) or 'all'}"
        raise DataError(source.name, f"no rows of {asked} (found: {found})", "choose others")
    return np.flatnonzero(wanted)


def _label_columns(source: Source) -> tuple[pa.Table, tuple[str, ...]]:
    """The label columns that there are, all rows, and the names of the classes."""
    if not isinstance(source.images, ParquetImages):
        raise DataError(source.name, "is not Parquet, which alone carries labels of pixels", "write it as Parquet")
    tables = source.images.read_columns(list(_MODES))
    if lacking := [table for table in tables if SEGMENTS not in table.column_names]:
        problem = f"{len(lacking)} of {len(tables)} files have no column {SEGMENTS!r}"
        raise DataError(source.name, problem, "dense probes need a class number at every pixel, as PNG bytes")
    return pa.concat_tables(tables, promote_options="default"), _class_names(source, tables)


def _class_names(source: Source, tables: Sequence[pa.Table]) -> tuple[str, ...]:
    stored = {(table.schema.metadata or {}).get(SEGMENT_NAMES_KEY.encode(), b"") for table in tables}
    try:
        (names,) = stored
        return tuple(json.loads(names))
    except (ValueError, TypeError) as error:
        problem = f"schema metadata {SEGMENT_NAMES_KEY!r} is missing, differs between files or is no JSON list"
        raise DataError(source.name, problem, "store the list of class names under that key") from error


def _common_size(source: Source, row_ids: Int[np.ndarray, " image"]) -> int:
    """The side of the images, all of which are square and equally large."""
    sizes: dict[tuple[int, int], int] = {}
    for start in range(0, len(row_ids), _BLOCK):
        rows = row_ids[start : start + _BLOCK]
        for row, encoded in zip(rows.tolist(), source.read_images(rows), strict=True):
            with _opened(encoded, FORMATS, source, row, "image") as image:
                sizes.setdefault(image.size, row)
    width, height = next(iter(sizes))
    if len(sizes) > 1 or width != height:
        examples = ", ".join(f"{w} x {h} (row {row})" for (w, h), row in list(sizes.items())[:3])
        raise DataError(source.name, f"images have sizes {examples}", "store squares of one size")
    return width


def _decode(
    encoded: Sequence[bytes | None], column: str, size: int, source: Source, row_ids: Int[np.ndarray, " image"]
) -> np.ndarray:
    """One label column as an array `[image, size, size]`."""
    mode, kind = _MODES[column]
    found = np.empty((len(encoded), size, size), kind)
    for place, (row, data) in enumerate(zip(row_ids.tolist(), encoded, strict=True)):
        with _opened(data or b"", ("PNG",), source, row, column) as image:
            if image.mode != mode or image.size != (size, size):
                is_now = f"is {image.width} x {image.height} of mode {image.mode}"
                wanted = f"wanted {size} x {size} of mode {mode}"
                raise DataError(source.name, f"row {row}: {column} {is_now}, {wanted}", _ADVICE)
            try:
                found[place] = np.asarray(image)
            except (OSError, ValueError, SyntaxError) as error:
                raise _broken(source, row, column, error) from error
    return found


def _opened(encoded: bytes, formats: tuple[str, ...], source: Source, row: int, column: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded), formats=formats)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _broken(source, row, column, error) from error


def _broken(source: Source, row: int, column: str, error: Exception) -> DataError:
    return DataError(source.name, f"row {row}: {column} is not a readable image ({error})", _ADVICE)
