"""Parquet files as a source: metadata read whole, images read by row group.

Random access costs one row group per row that is not in the cache, so files should have small groups (hundreds of
rows). The bundled set has 512 rows a group.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from pyarrow.fs import FileSystem

from elastic.data import schema
from elastic.data.source import ImageStore, Source
from elastic.errors import DataError

CACHE_BYTES = 256 * 1024**2
"""Encoded images of the row groups used last that a store keeps."""


def open_parquet(location: str, filesystem: FileSystem, paths: list[str]) -> Source:
    """The rows of some Parquet files as one source.

    Raises:
        DataError: a file is unreadable, or lacks the image column.
    """
    tables: list[pa.Table] = []
    groups: list[tuple[int, int, int]] = []
    num_rows = 0
    for index, path in enumerate(paths):
        try:
            with pq.ParquetFile(path, filesystem=filesystem) as file:
                _check_image_column(location, path, file.schema_arrow)
                wanted = [name for name in schema.METADATA.names if name in file.schema_arrow.names]
                tables.append(schema.conform(_metadata(file, wanted), location))
                for group in range(file.num_row_groups):
                    groups.append((index, group, num_rows))
                    num_rows += file.metadata.row_group(group).num_rows
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(location, path, error) from error
    metadata = pa.concat_tables(tables) if tables else schema.METADATA.empty_table()
    return Source(location, metadata, ParquetImages(location, filesystem, paths, groups))


class ParquetImages(ImageStore):
    """Images by row group, with the groups used last kept."""

    def __init__(
        self, location: str, filesystem: FileSystem, paths: list[str], groups: list[tuple[int, int, int]]
    ) -> None:
        self._location, self._filesystem, self._paths = location, filesystem, paths
        self._groups = groups
        self._first_rows = np.array([first for _, _, first in groups], np.int64)
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": OrderedDict()}

    def read(self, row_ids: Int[np.ndarray, " rows"]) -> list[bytes]:
        """See `ImageStore.read`; reads each row group once however many of its rows are asked for."""
        group_of = np.searchsorted(self._first_rows, row_ids, side="right") - 1
        images: list[bytes] = [b""] * len(row_ids)
        for group in np.unique(group_of):
            column = self._group(int(group))
            for place in np.flatnonzero(group_of == group):
                # A null image is one more way of being broken: it decodes as one.
                images[place] = column[int(row_ids[place] - self._first_rows[group])].as_py() or b""
        return images

    def read_columns(self, names: Sequence[str]) -> list[pa.Table]:
        """Whole columns beside the image, one table a file, rows in order; a file gives those that it has.

        Raises:
            DataError: a file became unreadable.
        """
        tables: list[pa.Table] = []
        for path in self._paths:
            try:
                with pq.ParquetFile(path, filesystem=self._filesystem) as file:
                    tables.append(file.read(columns=[name for name in names if name in file.schema_arrow.names]))
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(self._location, path, error) from error
        return tables

    def _group(self, index: int) -> pa.ChunkedArray:
        if index not in self._cache:
            path_index, group, _ = self._groups[index]
            path = self._paths[path_index]
            try:
                with pq.ParquetFile(path, filesystem=self._filesystem) as file:
                    column = file.read_row_group(group, columns=[schema.IMAGE])[schema.IMAGE]
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(self._location, path, error) from error
            self._cache[index] = column
            while len(self._cache) > 1 and sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(index)
        return self._cache[index]


def _metadata(file: pq.ParquetFile, wanted: list[str]) -> pa.Table:
    if wanted:
        return file.read(columns=wanted)
    # A table without columns has no rows; one column of nulls keeps the count.
    return pa.table({"caption": pa.nulls(file.metadata.num_rows, pa.string())})


def _check_image_column(location: str, path: str, found: pa.Schema) -> None:
    if schema.IMAGE not in found.names:
        problem = f"{path} has no column {schema.IMAGE!r}; found {', '.join(found.names)}"
        raise DataError(location, problem, "rename the column that holds the encoded images")
    kind = found.field(schema.IMAGE).type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        problem = f"{path}: column {schema.IMAGE!r} is {kind}, wanted binary"
        raise DataError(location, problem, "store the encoded bytes of each image")


def _unreadable(location: str, path: str, error: Exception) -> DataError:
    return DataError(location, f"{path} cannot be read ({error})", "check or replace the file")
