import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from elastic.data.source import Source
from elastic.data.sources import open_source
from elastic.errors import DataError

from .drawing import plain


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    first = {
        "birds/001.png": plain(1),
        "birds/001.json": b'{"label": 7, "domain": "birds", "synthetic_captions": ["x"], "extra": 1}',
        "birds/001.txt": b"a bird\n",
        "birds/002.seg.png": plain(9),
        "readme": b"not a sample",
    }
    write_tar(tmp_path / "0.tar", first)
    write_tar(tmp_path / "1.tar", {"001.cls": b"4", "001.PNG": plain(3), "002.txt": b"no image"})
    return open_source(str(tmp_path))


def test_members_with_one_key_are_one_row(source: Source):
    rows = source.metadata.to_pylist()
    assert len(rows) == 2
    assert rows[0]["label"] == "7"
    assert rows[0]["domain"] == "birds"
    assert rows[0]["caption"] == "a bird"
    assert rows[0]["synthetic_captions"] == ["x"]
    assert rows[1]["label"] == "4"


def test_images_are_read_from_their_place(source: Source):
    assert source.read_images(np.array([1, 0, 1])) == [plain(3), plain(1), plain(3)]


def test_the_index_moves_with_the_store(source: Source):
    copy = pickle.loads(pickle.dumps(source.images))
    assert copy.read(np.array([0])) == [plain(1)]


def test_a_tar_without_images_says_which_suffixes_count(tmp_path: Path):
    write_tar(tmp_path / "a.tar", {"1.txt": b"x"})
    with pytest.raises(DataError, match=r"no member of 1 tars is an image; images need one of the suffixes png"):
        open_source(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_malformed_json_names_the_tar(tmp_path: Path, content: bytes):
    write_tar(tmp_path / "a.tar", {"1.png": plain(1), "1.json": content})
    with pytest.raises(DataError, match=r"a.tar cannot be read"):
        open_source(str(tmp_path / "a.tar"))


def test_a_file_that_is_no_tar_is_named(tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DataError, match=r"a.tar cannot be read"):
        open_source(str(tmp_path / "a.tar"))


def test_captions_of_the_wrong_kind_are_an_error(tmp_path: Path):
    write_tar(tmp_path / "a.tar", {"1.png": plain(1), "1.json": b'{"synthetic_captions": 4}'})
    with pytest.raises(DataError, match="'synthetic_captions' cannot be read"):
        open_source(str(tmp_path / "a.tar"))
