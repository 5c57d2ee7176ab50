"""WebDataset tars as a source: members that share a key are one row.

`0001.jpg` is the image; `0001.json` holds columns of `schema.METADATA`; `0001.txt` is the caption and `0001.cls` the
label where the JSON does not say. The headers are scanned once, when the source is opened; an image is then one
ranged read.
"""

import json
import tarfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int
from pyarrow.fs import FileSystem

from elastic.data import schema
from elastic.data.source import ImageStore, Source
from elastic.errors import DataError

IMAGE_SUFFIXES = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff")


@dataclass(slots=True)
class _Sample:
    """One row while its members are collected."""

    place: tuple[int, int, int] | None = None
    """Tar, first byte and number of bytes of the image."""
    columns: dict[str, Any] = field(default_factory=dict)


def open_tars(location: str, filesystem: FileSystem, paths: list[str]) -> Source:
    """The samples of some tars, in their order.

    Raises:
        DataError: a file is not a tar, a JSON member is malformed, or no sample has an image.
    """
    samples: list[_Sample] = []
    for index, path in enumerate(paths):
        try:
            with filesystem.open_input_file(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                samples += _scan(tar, index)
        except (OSError, tarfile.TarError, ValueError) as error:
            raise DataError(location, f"{path} cannot be read ({error})", "check or replace the tar") from error
    places = [sample.place for sample in samples if sample.place is not None]
    if not places:
        problem = f"no member of {len(paths)} tars is an image"
        raise DataError(location, problem, f"images need one of the suffixes {', '.join(IMAGE_SUFFIXES)}")
    rows = [sample.columns for sample in samples if sample.place is not None]
    return Source(location, _to_metadata(rows, location), TarImages(location, filesystem, paths, places))


class TarImages(ImageStore):
    """One byte range of a tar per image."""

    def __init__(
        self, location: str, filesystem: FileSystem, paths: list[str], places: list[tuple[int, int, int]]
    ) -> None:
        self._location, self._filesystem, self._paths = location, filesystem, paths
        self._places = np.array(places, np.int64)

    def read(self, row_ids: Int[np.ndarray, " rows"]) -> list[bytes]:
        """See `ImageStore.read`; opens each tar once however many of its rows are asked for."""
        places = self._places[row_ids]
        images: list[bytes] = [b""] * len(row_ids)
        for tar in np.unique(places[:, 0]):
            path = self._paths[tar]
            try:
                with self._filesystem.open_input_file(path) as stream:
                    for index in np.flatnonzero(places[:, 0] == tar):
                        _, start, num_bytes = places[index].tolist()
                        images[index] = stream.read_at(num_bytes, start)
            except (OSError, pa.ArrowException) as error:
                raise DataError(self._location, f"{path} cannot be read ({error})", "check the tar") from error
        return images


def _scan(tar: tarfile.TarFile, tar_index: int) -> list[_Sample]:
    samples: dict[str, _Sample] = {}
    for member in tar:
        # WebDataset splits at the first dot of the file name; the folder belongs to the key.
        folder, _, base = member.name.rpartition("/")
        stem, dot, suffix = base.partition(".")
        if not member.isfile() or not dot or not stem:
            continue
        sample = samples.setdefault(f"{folder}/{stem}", _Sample())
        suffix = suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            sample.place = (tar_index, member.offset_data, member.size)
        elif suffix in ("json", "txt", "cls"):
            content = tar.extractfile(member)
            assert content is not None, member.name
            _add_columns(sample.columns, suffix, content.read().decode("utf-8"))
    return list(samples.values())


def _add_columns(columns: dict[str, Any], suffix: str, text: str) -> None:
    if suffix == "json":
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("a .json member must hold one object")
        columns.update({name: value for name, value in found.items() if name in schema.METADATA.names})
    else:
        columns.setdefault("caption" if suffix == "txt" else "label", text.strip())


def _to_metadata(rows: list[dict[str, Any]], location: str) -> pa.Table:
    columns: dict[str, pa.Array] = {}
    for name in schema.METADATA.names:
        values = [row.get(name) for row in rows]
        if name != "synthetic_captions":
            values = [None if value is None else str(value) for value in values]
        try:
            columns[name] = pa.array(values, schema.METADATA.field(name).type)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(location, f"{name!r} cannot be read ({error})", "repair the JSON members") from error
    return schema.conform(pa.table(columns), location)
