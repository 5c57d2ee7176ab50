"""A folder of images with a table beside them as a source.

`metadata.csv` or `metadata.jsonl` has one line per image: `file_name`, relative to the folder, and any of the
columns of `schema.METADATA`. In CSV, `synthetic_captions` is a JSON list or one caption.
"""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
from jaxtyping import Int
from pyarrow.fs import FileSystem, FileType

from elastic.data import schema
from elastic.data.source import ImageStore, Source
from elastic.errors import DataError

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_NAME = "file_name"


def open_folder(location: str, filesystem: FileSystem, folder: str, metadata_file: str) -> Source:
    """The images that a metadata file lists.

    Raises:
        DataError: the file is malformed, lacks `file_name`, or names a file outside the folder.
    """
    try:
        with filesystem.open_input_file(metadata_file) as stream:
            content = stream.read()
        table = _read_csv(content) if metadata_file.endswith(".csv") else _read_jsonl(content)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(location, f"{metadata_file} cannot be read ({error})", "repair the file") from error
    if FILE_NAME not in table.column_names:
        problem = f"{metadata_file} has no column {FILE_NAME!r}; found {', '.join(table.column_names)}"
        raise DataError(location, problem, "add it: the path of each image below the folder")
    names = [str(name) for name in table[FILE_NAME].to_pylist()]
    outside = [name for name in names if name.startswith("/") or ".." in name.split("/")]
    if outside:
        raise DataError(location, f"{metadata_file} names {outside[0]!r}", "keep images below the folder")
    paths = [f"{folder.rstrip('/')}/{name}" for name in names]
    return Source(location, schema.conform(table, location), FileImages(location, filesystem, paths))


class FileImages(ImageStore):
    """One file per image."""

    def __init__(self, location: str, filesystem: FileSystem, paths: list[str]) -> None:
        self._location, self._filesystem, self._paths = location, filesystem, paths

    def read(self, row_ids: Int[np.ndarray, " rows"]) -> list[bytes]:
        """See `ImageStore.read`; a file that is missing counts as a broken image."""
        return [self._read(self._paths[row]) for row in row_ids]

    def _read(self, path: str) -> bytes:
        try:
            with self._filesystem.open_input_file(path) as stream:
                return stream.read()
        except OSError as error:
            if self._filesystem.get_file_info(path).type == FileType.File:
                raise DataError(self._location, f"{path} cannot be read ({error})", "check the file") from error
            return b""


def _read_csv(content: bytes) -> pa.Table:
    header = pyarrow.csv.open_csv(io.BytesIO(content)).schema.names
    # Everything is text first: a label such as 007 must not lose its zeros.
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    table = pyarrow.csv.read_csv(io.BytesIO(content), parse_options=parse, convert_options=options)
    name = "synthetic_captions"
    if name in table.column_names:
        lists = [_parse_list(text) for text in table[name].to_pylist()]
        table = table.set_column(table.column_names.index(name), name, pa.array(lists, pa.list_(pa.string())))
    return table


def _parse_list(text: str | None) -> list[str] | None:
    if text is None:
        return None
    return json.loads(text) if text.startswith("[") else [text]


def _read_jsonl(content: bytes) -> pa.Table:
    rows = [json.loads(line) for line in content.decode("utf-8").splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every line must be an object")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
