import json
from pathlib import Path

import numpy as np
import pytest

from elastic.data.source import Source
from elastic.data.sources import open_source
from elastic.errors import DataError

from .drawing import plain


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.png").write_bytes(plain(1))
    (tmp_path / "deep" / "b.png").write_bytes(plain(2))
    return tmp_path


def opened(folder: Path, name: str, text: str) -> Source:
    (folder / name).write_text(text)
    return open_source(str(folder))


def test_a_csv_lists_images_with_their_columns(folder: Path):
    text = 'file_name,label,caption,split,synthetic_captions\na.png,007,"one, two",train,"[""x"",""y""]"\n'
    source = opened(folder, "metadata.csv", text + "deep/b.png,,,val,a plain one\n")
    assert source.read_images(np.array([1, 0])) == [plain(2), plain(1)]
    assert source.metadata["label"].to_pylist() == ["007", None]
    assert source.metadata["caption"].to_pylist() == ["one, two", None]
    assert source.metadata["split"].to_pylist() == ["train", "val"]
    assert source.metadata["synthetic_captions"].to_pylist() == [["x", "y"], ["a plain one"]]


def test_jsonl_lines_may_have_different_fields(folder: Path):
    lines = [{"file_name": "a.png", "label": 3}, {"file_name": "deep/b.png", "synthetic_captions": ["x"]}]
    source = opened(folder, "metadata.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert source.metadata["label"].to_pylist() == ["3", None]
    assert source.metadata["synthetic_captions"].to_pylist() == [None, ["x"]]


def test_a_missing_file_is_a_broken_image_not_a_crash(folder: Path):
    source = opened(folder, "metadata.csv", "file_name\na.png\ngone.png\n")
    assert source.read_images(np.array([0, 1])) == [plain(1), b""]


def test_a_missing_column_lists_what_was_found(folder: Path):
    with pytest.raises(DataError, match=r"no column 'file_name'; found path, label"):
        opened(folder, "metadata.csv", "path,label\na.png,x\n")


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret.png", "deep/../../secret.png"])
def test_names_outside_the_folder_are_refused(folder: Path, name: str):
    with pytest.raises(DataError, match="keep images below the folder"):
        opened(folder, "metadata.csv", f"file_name\n{name}\n")


@pytest.mark.parametrize(
    "text", ["{", '["a.png"]', '{"file_name": "a.png", "label": 1}\n{"file_name": 2, "label": []}']
)
def test_malformed_lines_are_one_kind_of_error(folder: Path, text: str):
    with pytest.raises(DataError, match=r"metadata.jsonl cannot be read"):
        opened(folder, "metadata.jsonl", text)


def test_a_malformed_list_of_captions_is_the_same_kind(folder: Path):
    with pytest.raises(DataError, match=r"metadata.csv cannot be read"):
        opened(folder, "metadata.csv", "file_name,synthetic_captions\na.png,[x\n")
