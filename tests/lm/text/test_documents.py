import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elastic.errors import DataError
from elastic.lm.text import documents
from elastic.lm.text.documents import Document, find_parts, fingerprint, group_parts, is_held_out, read_parts


def read(source: Path | str, field: str = "text") -> list[tuple[str, str]]:
    return [(found.id, found.text) for found in read_parts(find_parts(str(source)), field).documents]


def test_a_text_file_is_one_document_named_by_its_path_in_the_folder(tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "page.md").write_text("# Title\n\nBody\n")
    (tmp_path / "b.txt").write_text("text")
    (tmp_path / "b.csv").write_text("not, text")
    (tmp_path / ".hidden.txt").write_text("not shown")
    assert read(tmp_path) == [("a/page.md", "# Title\n\nBody\n"), ("b.txt", "text")]
    assert read(f"file://{tmp_path}") == read(f"{tmp_path}/") == read(tmp_path)


def test_a_glob_takes_what_it_matches(tmp_path: Path):
    for name in ("a1.txt", "a2.txt", "b1.txt"):
        (tmp_path / name).write_text(name)
    assert read(f"{tmp_path}/a*.txt") == [("a1.txt", "a1.txt"), ("a2.txt", "a2.txt")]


def test_a_line_is_a_document_named_by_its_id_or_its_byte(tmp_path: Path):
    lines = tmp_path / "x.jsonl"
    content = '{"text": "one", "id": "first"}\n\n{"text": "two", "id": 7}\n{"text": "three"}\n{"text": "four"}'
    lines.write_text(content)
    bytes_of = {text: content.index(f'{{"text": "{text}"') for text in ("three", "four")}
    keys = ["first", "7", f"x.jsonl@{bytes_of['three']}", f"x.jsonl@{bytes_of['four']}"]
    assert read(lines) == list(zip(keys, ("one", "two", "three", "four"), strict=True))


def test_lines_that_hold_no_text_are_skipped_and_counted(tmp_path: Path):
    lines = tmp_path / "x.jsonl"
    bad = [
        b"{",
        b"[1]",
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": " "}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
    ]
    lines.write_bytes(b"\n".join([b'{"text": "good"}', *bad, b'{"text": "last"}']))
    reading = read_parts(find_parts(str(lines)), "text")
    assert [found.text for found in reading.documents] == ["good", "last"]
    assert reading.num_skipped == len(bad)


def test_files_that_are_not_text_are_skipped_and_counted(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.txt").write_text("text")
    reading = read_parts(find_parts(str(tmp_path)), "text")
    assert reading.documents == [Document("c.txt", "text")]
    assert reading.num_skipped == 2


@pytest.mark.parametrize("part_bytes", range(1, 40, 3))
def test_lines_are_the_same_however_a_file_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int):
    lines = tmp_path / "x.jsonl"
    texts = ["a", "bb" * 9, "", "\u00e9" * 5, "c", "d" * 40]
    lines.write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), "utf-8")
    whole = read(lines)
    monkeypatch.setattr(documents, "PART_BYTES", part_bytes)
    assert len(find_parts(str(lines))) == -(-lines.stat().st_size // part_bytes)
    assert read(lines) == whole
    assert [text for _, text in whole] == [text for text in texts if text]


def test_rows_of_parquet_are_documents(tmp_path: Path):
    table = pa.table({"id": ["x", None, "z"], "body": ["one", "two", None], "more": [1, 2, 3]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    assert len(find_parts(str(tmp_path))) == 2
    assert read(tmp_path, "body") == [("x", "one"), ("rows.parquet#0.1", "two")]
    assert read_parts(find_parts(str(tmp_path)), "body").num_skipped == 1


def test_a_parquet_file_without_the_column_is_an_error(tmp_path: Path):
    pq.write_table(pa.table({"body": ["one"]}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match="has no column 'text'; found body; set `text_field`"):
        read(tmp_path)


def test_a_damaged_parquet_file_is_an_error(tmp_path: Path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read"):
        find_parts(str(tmp_path))


@pytest.mark.parametrize("name", ["", "page.html", "*.txt"])
def test_a_source_without_text_is_an_error(tmp_path: Path, name: str):
    (tmp_path / "page.html").write_text("<p>")
    with pytest.raises(DataError, match=r"holds no \.txt, \.md, \.jsonl, \.parquet file; check the path"):
        find_parts(str(tmp_path / name) if name else str(tmp_path))


def test_small_files_share_a_group_and_no_group_is_larger_than_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for number, size in enumerate((3, 3, 3, 20, 1)):
        (tmp_path / f"{number}.txt").write_text("x" * size)
    monkeypatch.setattr(documents, "PART_BYTES", 7)
    groups = group_parts(find_parts(str(tmp_path)))
    assert [[part.name[0] for part in group] for group in groups] == [["0", "1"], ["2"], ["3"], ["4"]]


def test_a_hash_of_the_id_holds_out_its_share():
    ids = [f"document-{number}" for number in range(20_000)]
    held_out = [key for key in ids if is_held_out(key, 0.05, 0)]
    assert len(held_out) == pytest.approx(1000, abs=100)  # three standard deviations are 92
    assert all(is_held_out(key, 0.1, 0) for key in held_out)
    assert not any(is_held_out(key, 0.0, 0) for key in ids)
    assert {key for key in ids if is_held_out(key, 0.05, 1)} != set(held_out)


def test_a_fingerprint_changes_with_the_files(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one")
    before = fingerprint(find_parts(str(tmp_path)))
    assert fingerprint(find_parts(str(tmp_path))) == before
    (tmp_path / "a.txt").write_text("other")
    after = fingerprint(find_parts(str(tmp_path)))
    (tmp_path / "b.txt").write_text("more")
    assert len({before, after, fingerprint(find_parts(str(tmp_path)))}) == 3
