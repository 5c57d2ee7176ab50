import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow.fs import LocalFileSystem

from elastic.data import parquet
from elastic.data.parquet import open_parquet
from elastic.data.source import Source
from elastic.errors import DataError

from .drawing import table, write


def opened(*paths: str) -> Source:
    return open_parquet("here", LocalFileSystem(), list(paths))


def test_rows_are_numbered_over_files_and_row_groups(tmp_path: Path):
    rows = table(5, 3)
    paths = [
        write(tmp_path, rows.slice(start, count), f"{start:02}.parquet") for start, count in ((0, 7), (7, 1), (8, 7))
    ]
    source = opened(*paths)
    images = rows["image"].to_pylist()
    wanted = np.array([14, 0, 7, 6, 8, 14, 3])
    assert source.read_images(wanted) == [images[row] for row in wanted]
    assert source.metadata["label"].to_pylist() == rows["label"].to_pylist()


def test_a_store_moves_between_processes_without_its_cache(tmp_path: Path):
    rows = table(20, 2)
    source = opened(write(tmp_path, rows))
    empty = len(pickle.dumps(source.images))
    source.read_images(np.arange(40))
    assert len(pickle.dumps(source.images)) == empty
    assert pickle.loads(pickle.dumps(source.images)).read(np.array([39])) == [rows["image"][39].as_py()]


def test_little_is_kept_of_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parquet, "CACHE_BYTES", 1)
    rows = table(8, 2)
    source = opened(write(tmp_path, rows))
    assert source.read_images(np.arange(16)) == rows["image"].to_pylist()
    assert isinstance(source.images, parquet.ParquetImages)
    assert len(source.images._cache) == 1


def test_a_file_with_images_alone_is_a_source(tmp_path: Path):
    source = opened(write(tmp_path, table(2, 2).select(["image"])))
    assert len(source) == 4
    assert source.metadata["domain"].to_pylist() == ["default"] * 4


def test_a_null_image_reads_as_no_bytes(tmp_path: Path):
    rows = pa.table({"image": pa.array([None, b"x"], pa.binary())})
    assert opened(write(tmp_path, rows)).read_images(np.array([0, 1])) == [b"", b"x"]


def test_a_missing_image_column_lists_what_was_found(tmp_path: Path):
    path = write(tmp_path, table(1, 1).rename_columns(["img", "label", "domain", "caption", "caption_id", "split"]))
    with pytest.raises(DataError, match=r"no column 'image'; found img, label, domain, caption, caption_id, split"):
        opened(path)


def test_an_image_column_of_another_type_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="column 'image' is string, wanted binary"):
        opened(write(tmp_path, pa.table({"image": ["a.png"]})))


def test_a_damaged_file_is_named(tmp_path: Path):
    path = tmp_path / "set.parquet"
    path.write_bytes(b"PAR1 nothing of the kind")
    with pytest.raises(DataError, match=r"set.parquet cannot be read"):
        opened(str(path))


def test_a_file_that_goes_away_is_named_when_it_is_read(tmp_path: Path):
    path = write(tmp_path, table(1, 1))
    source = opened(path)
    Path(path).unlink()
    with pytest.raises(DataError, match=r"set.parquet cannot be read"):
        source.read_images(np.array([0]))


def test_further_columns_are_read_whole_and_file_by_file(tmp_path: Path):
    rows = table(3, 2)
    paths = [
        write(tmp_path, rows.slice(0, 4), "0.parquet"),
        write(tmp_path, rows.slice(4).drop_columns(["label"]), "1.parquet"),
    ]
    images = opened(*paths).images
    assert isinstance(images, parquet.ParquetImages)
    first, second = images.read_columns(["label", "caption", "other"])
    assert first.to_pydict() == rows.slice(0, 4).select(["label", "caption"]).to_pydict()
    assert second.to_pydict() == rows.slice(4).select(["caption"]).to_pydict()


def test_a_file_that_went_missing_is_named(tmp_path: Path):
    path = write(tmp_path, table(1, 2))
    images = opened(path).images
    assert isinstance(images, parquet.ParquetImages)
    Path(path).unlink()
    with pytest.raises(DataError, match=r"set\.parquet cannot be read"):
        images.read_columns(["label"])
