"""Documents: texts with an id, read from the files that users have, in parts that processes read apart.

A .txt or .md file is one document, so are a line of a .jsonl and a row of a .parquet file. What cannot be read as text
is skipped and counted. Ids do not depend on how a source is cut into parts, on where its folder lies, or on the other
sources; so a document stays held out, or not, for as long as it keeps its file.
"""

import glob
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileInfo, FileSystem, FileType

from elastic.data.filesystem import list_files, locate
from elastic.errors import DataError

SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("source", pa.string())])
"""Columns of the package's own corpora."""

PART_BYTES = 4 * 1024**2
"""Text that one process reads and tokenizes at a time."""

_SUFFIXES = {".txt": "file", ".md": "file", ".jsonl": "lines", ".parquet": "rows"}


@dataclass(frozen=True, slots=True)
class Document:
    """One text, never empty."""

    id: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of one file that is read whole."""

    filesystem: FileSystem
    path: str
    name: str
    """The file's path below the source, which ids begin with."""
    kind: Literal["file", "lines", "rows"]
    start: int = 0
    stop: int
    """Bytes that its lines begin in; or row groups; the whole file otherwise."""
    num_bytes: int
    """Of text, about."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of some parts."""

    documents: list[Document]
    num_skipped: int
    """Files, lines and rows without readable text."""


def find_parts(source: str) -> list[Part]:
    """All parts of the files at a location, in the order of their paths.

    Args:
        source: a file, a folder, a URL of one of these, or a glob of local files.

    Raises:
        DataError: nothing there, or nothing of a known kind.
    """
    if glob.has_magic(source) and "://" not in source:
        found = [locate(path) for path in sorted(glob.glob(source, recursive=True)) if path.endswith(tuple(_SUFFIXES))]
        parts = [part for filesystem, path, info in found for part in _cut(filesystem, info, Path(path).name)]
    else:
        filesystem, path, info = locate(source)
        if info.type == FileType.Directory:
            infos = filesystem.get_file_info(list_files(filesystem, path, tuple(_SUFFIXES)))
            parts = [part for info in infos for part in _cut(filesystem, info, info.path[len(path.rstrip("/")) + 1 :])]
        else:
            parts = list(_cut(filesystem, info, info.base_name))
    if not parts:
        raise DataError(source, f"holds no {', '.join(_SUFFIXES)} file", "check the path, or convert the files")
    return parts


def group_parts(parts: Sequence[Part]) -> list[tuple[Part, ...]]:
    """Neighbouring parts together while they hold at most `PART_BYTES` of text, so that small files share a task."""
    groups: list[list[Part]] = []
    room = 0
    for part in parts:
        if not groups or part.num_bytes > room:
            groups.append([])
            room = PART_BYTES
        groups[-1].append(part)
        room -= part.num_bytes
    return [tuple(group) for group in groups]


def read_parts(parts: Sequence[Part], text_field: str) -> Reading:
    """The documents of some parts, in order.

    Raises:
        DataError: a file became unreadable, or a Parquet file has no column of that name.
    """
    readers = {"file": _read_file, "lines": _read_lines, "rows": _read_rows}
    documents: list[Document] = []
    num_skipped = 0
    for part in parts:
        try:
            for key, text in readers[part.kind](part, text_field):
                if isinstance(text, str) and text.strip() and _is_encodable(text):
                    documents.append(Document(key, text))
                else:
                    num_skipped += 1
        except (OSError, pa.ArrowException) as error:
            raise DataError(part.path, f"cannot be read ({error})", "check or replace the file") from error
    return Reading(documents, num_skipped)


def is_held_out(document_id: str, fraction: float, seed: int) -> bool:
    """Whether a document belongs to the validation set: its id's hash, uniform below 1, is below `fraction`."""
    digest = hashlib.blake2b(f"{seed}\0{document_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def fingerprint(parts: Sequence[Part]) -> str:
    """Changes when a file is added, removed, renamed, resized or rewritten; reads none of them."""
    digest = hashlib.sha256()
    for part in parts:
        info = part.filesystem.get_file_info(part.path)
        digest.update(f"{part.name}\0{part.start}\0{part.stop}\0{info.size}\0{info.mtime_ns}\n".encode())
    return digest.hexdigest()


def _cut(filesystem: FileSystem, info: FileInfo, name: str) -> Iterator[Part]:
    """The parts of one file."""
    kind: Any = _SUFFIXES.get(f".{info.extension}")
    size = info.size or 0
    common: dict[str, Any] = {"filesystem": filesystem, "path": info.path, "name": name, "kind": kind}
    if kind == "file":
        yield Part(**common, stop=size, num_bytes=size)
    elif kind == "lines":
        for start in range(0, size, PART_BYTES):
            stop = min(start + PART_BYTES, size)
            yield Part(**common, start=start, stop=stop, num_bytes=stop - start)
    elif kind == "rows":
        try:
            with pq.ParquetFile(info.path, filesystem=filesystem) as file:
                sizes = [file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)]
        except (OSError, pa.ArrowException) as error:
            raise DataError(info.path, f"cannot be read ({error})", "check or replace the file") from error
        for group, group_bytes in enumerate(sizes):
            yield Part(**common, start=group, stop=group + 1, num_bytes=group_bytes)


def _read_file(part: Part, text_field: str) -> Iterator[tuple[str, Any]]:
    with part.filesystem.open_input_stream(part.path) as file:
        yield part.name, _decode(file.read())


def _read_lines(part: Part, text_field: str) -> Iterator[tuple[str, Any]]:
    for start, line in _lines(part):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        fields: dict[str, Any] = row if isinstance(row, dict) else {}
        yield _id(fields.get("id"), f"{part.name}@{start}"), fields.get(text_field)


def _lines(part: Part) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in a part, each with the byte of the file that it begins at."""
    # The byte before tells whether the part begins with a line or within one.
    start = max(part.start - 1, 0)
    with part.filesystem.open_input_file(part.path) as file:
        file.seek(start)
        content = file.read(part.stop - start)
        while not content.endswith(b"\n") and (more := file.read(64 * 1024)):
            head, newline, _ = more.partition(b"\n")
            content += head + newline
    first, *rest = content.split(b"\n")
    if part.start == 0:
        rest.insert(0, first)
    else:
        start += len(first) + 1
    for line in rest:
        # What was read to complete the last line may hold no other, but the split leaves an empty one behind it.
        if start < part.stop:
            yield start, line
        start += len(line) + 1


def _read_rows(part: Part, text_field: str) -> Iterator[tuple[str, Any]]:
    with pq.ParquetFile(part.path, filesystem=part.filesystem) as file:
        names = file.schema_arrow.names
        if text_field not in names:
            problem = f"has no column {text_field!r}; found {', '.join(names)}"
            raise DataError(part.path, problem, "set `text_field` to the column that holds the text")
        columns = [text_field, *(["id"] if "id" in names else [])]
        table = file.read_row_groups(range(part.start, part.stop), columns=columns)
    texts = table[text_field].to_pylist()
    ids = table["id"].to_pylist() if "id" in names else [None] * len(texts)
    for row, (key, text) in enumerate(zip(ids, texts, strict=True)):
        yield _id(key, f"{part.name}#{part.start}.{row}"), text


def _id(given: object, otherwise: str) -> str:
    return str(given) if isinstance(given, str | int) else otherwise


def _decode(content: bytes) -> str | None:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_encodable(text: str) -> bool:
    """Whether a text is Unicode; JSON can also say half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
