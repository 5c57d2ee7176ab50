import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest

from elastic.data import build_scenes, icons, schema
from elastic.data.decode import decode
from elastic.data.scenes import SceneConfig
from elastic.data.sources import open_source
from elastic.errors import DataError

from .drawing import table, write


def test_icons_is_the_bundled_set():
    source = open_source("icons")
    assert source.name == "icons"
    assert len(source) == icons.NUM_IMAGES


def test_scenes_is_built_and_opened_without_its_dense_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    small = SceneConfig(num_train=2, num_val=1, num_test=1, num_captions=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build_scenes, "SceneConfig", lambda: small)
    source = open_source("scenes")
    assert source.name == "scenes"
    assert source.metadata.schema.equals(schema.METADATA)
    assert source.metadata["split"].to_pylist() == ["train", "train", "val", "test", *["train"] * 4]
    assert decode(source.read_images(np.array([7]))[0], 64).shape == (4, 64, 64)


def test_a_file_a_folder_and_a_url_of_the_same_rows_read_alike(tmp_path: Path):
    rows = table(3, 2)
    location = write(tmp_path, rows)
    fsspec.filesystem("memory").put(location, "/sources/set.parquet")
    wanted = rows["image"].to_pylist()
    for place in (location, str(tmp_path), f"file://{location}", "memory://sources/set.parquet", "memory://sources"):
        source = open_source(place)
        assert source.name == place
        assert source.read_images(np.arange(6)) == wanted
        assert source.metadata["label"].to_pylist() == rows["label"].to_pylist()


def test_the_metadata_file_decides_what_a_folder_is(tmp_path: Path):
    write(tmp_path, table(1, 1))
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,x\n")
    assert open_source(str(tmp_path)).metadata["label"].to_pylist() == ["x"]


def test_an_empty_folder_says_what_could_be_there(tmp_path: Path):
    with pytest.raises(DataError, match=r"no Parquet files, no tars and no metadata file; add metadata.csv or"):
        open_source(str(tmp_path))


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    shutil.copy(__file__, tmp_path / "data.zip")
    with pytest.raises(DataError, match="is a file of an unknown kind"):
        open_source(str(tmp_path / "data.zip"))


def test_a_set_without_rows_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no rows"):
        open_source(write(tmp_path, table(1, 1).slice(0, 0)))
