from pathlib import Path

import fsspec
import pytest
from pyarrow.fs import FileType

from elastic.data.filesystem import cache_dir, list_files, locate
from elastic.errors import DataError


def test_a_local_path_and_a_file_url_are_the_same_place(tmp_path: Path):
    (tmp_path / "a.txt").write_text("here")
    for location in (str(tmp_path / "a.txt"), f"file://{tmp_path}/a.txt"):
        filesystem, path, info = locate(location)
        assert info.type == FileType.File
        with filesystem.open_input_file(path) as stream:
            assert stream.read() == b"here"


def test_any_fsspec_address_can_be_read():
    memory = fsspec.filesystem("memory")
    memory.pipe("/located/a.txt", b"there")
    filesystem, path, info = locate("memory://located/a.txt")
    assert info.type == FileType.File
    with filesystem.open_input_file(path) as stream:
        assert stream.read() == b"there"


def test_what_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing-here: does not exist"):
        locate(str(tmp_path / "nothing-here"))


def test_an_unknown_scheme_is_named():
    with pytest.raises(DataError, match=r"warp://x/y: cannot be reached"):
        locate("warp://x/y")


def test_files_are_listed_in_order_without_hidden_ones(tmp_path: Path):
    for name in ("b.tar", "a/z.tar", ".hidden.tar", "_part.tar", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    filesystem, path, _ = locate(str(tmp_path))
    assert list_files(filesystem, path, (".tar",)) == [str(tmp_path / "a/z.tar"), str(tmp_path / "b.tar")]


def test_the_cache_follows_the_desktop_convention(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/elastic")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path("/home/someone/.cache/elastic")
