import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from elastic.data.dense import load_dense_set
from elastic.errors import DataError

from .drawing import encode, plain, table, write

SIZE = 16
NAMES = ["background", "left", "right"]


def halves(left: int, right: int, kind: type = np.uint8) -> np.ndarray:
    """One value in each half of a square."""
    pixels = np.full((SIZE, SIZE), left, kind)
    pixels[:, SIZE // 2 :] = right
    return pixels


def dense_table(count: int = 4, **columns: list) -> pa.Table:
    """Plain images; the right half is class 2, its object is the row's number, and it is 1 m + row mm away."""
    rows = table(1, count)
    labels = {
        "segments": [encode(halves(0, 2))] * count,
        "instances": [encode(halves(0, row + 1)) for row in range(count)],
        "depth_mm": [encode(halves(0, 1000 + row, np.uint16)) for row in range(count)],
    }
    for name, values in (labels | columns).items():
        rows = rows.append_column(name, pa.array(values))
    return rows.replace_schema_metadata({"segment_names": json.dumps(NAMES)})


def replaced(rows: pa.Table, name: str, values: list) -> pa.Table:
    return rows.set_column(rows.column_names.index(name), name, pa.array(values))


def test_labels_come_back_as_they_were_written(tmp_path: Path):
    data = load_dense_set(write(tmp_path, dense_table()), "train")
    assert (len(data), data.image_size, data.segment_names) == (4, SIZE, tuple(NAMES))
    assert data.instances is not None
    assert data.depth_mm is not None
    for row in range(4):
        np.testing.assert_array_equal(data.segments[row], halves(0, 2))
        np.testing.assert_array_equal(data.instances[row], halves(0, row + 1))
        np.testing.assert_array_equal(data.depth_mm[row], halves(0, 1000 + row, np.uint16))


def test_depth_keeps_all_sixteen_bits(tmp_path: Path):
    rows = dense_table(1, depth_mm=[encode(halves(300, 65535, np.uint16))])
    depth = load_dense_set(write(tmp_path, rows), "train").depth_mm
    assert depth is not None
    assert np.unique(depth).tolist() == [300, 65535]


def test_rows_of_a_split_are_read_across_files_with_their_own_labels(tmp_path: Path):
    rows = replaced(dense_table(6), "split", ["train", "val"] * 3)
    for start in (0, 3):
        write(tmp_path, rows.slice(start, 3), f"{start}.parquet", group=2)
    data = load_dense_set(str(tmp_path), "val")
    assert data.row_ids.tolist() == [1, 3, 5]
    assert data.instances is not None
    assert data.instances[:, 0, -1].tolist() == [2, 4, 6]
    assert data.source.read_images(data.row_ids) == [rows["image"][row].as_py() for row in (1, 3, 5)]


def test_rows_can_be_limited_to_domains(tmp_path: Path):
    location = write(tmp_path, replaced(dense_table(), "domain", ["real", "made", "real", "made"]))
    assert load_dense_set(location, "train", ("real",)).row_ids.tolist() == [0, 2]
    with pytest.raises(DataError, match=r"no rows of split 'train' and domains \['other'\] .*'made', 'real'"):
        load_dense_set(location, "train", ("other",))


def test_instances_and_depth_may_be_missing(tmp_path: Path):
    data = load_dense_set(write(tmp_path, dense_table().drop_columns(["instances", "depth_mm"])), "train")
    assert data.instances is None
    assert data.depth_mm is None


def test_missing_segments_are_refused(tmp_path: Path):
    location = write(tmp_path, dense_table().drop_columns(["segments"]))
    with pytest.raises(DataError, match="1 of 1 files have no column 'segments'"):
        load_dense_set(location, "train")


@pytest.mark.parametrize("names", [None, "no json", "3"])
def test_classes_without_names_are_refused(tmp_path: Path, names: str | None):
    rows = dense_table().replace_schema_metadata(None if names is None else {"segment_names": names})
    with pytest.raises(DataError, match="'segment_names' is missing, differs between files or is no JSON list"):
        load_dense_set(write(tmp_path, rows), "train")


def test_files_that_name_classes_differently_are_refused(tmp_path: Path):
    write(tmp_path, dense_table(), "0.parquet")
    write(tmp_path, dense_table().replace_schema_metadata({"segment_names": '["background", "a", "b"]'}), "1.parquet")
    with pytest.raises(DataError, match="differs between files"):
        load_dense_set(str(tmp_path), "train")


def test_a_class_beyond_the_names_is_refused(tmp_path: Path):
    rows = dense_table(1, segments=[encode(halves(0, 3))])
    with pytest.raises(DataError, match="segments hold class 3, 3 classes have names"):
        load_dense_set(write(tmp_path, rows), "train")


def test_an_empty_split_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no rows of split 'test'"):
        load_dense_set(write(tmp_path, dense_table()), "test")


def test_images_that_are_not_squares_of_one_size_are_refused(tmp_path: Path):
    images = [plain(0), plain(0), plain(0, 8), plain(0)]
    with pytest.raises(DataError, match=r"16 x 16 \(row 0\), 8 x 8 \(row 2\)"):
        load_dense_set(write(tmp_path, replaced(dense_table(), "image", images)), "train")


@pytest.mark.parametrize(
    ("label", "problem"),
    [
        (encode(np.zeros((8, 8), np.uint8)), "row 1: segments is 8 x 8 of mode L, wanted 16 x 16 of mode L"),
        (plain(0), "row 1: segments is 16 x 16 of mode RGB"),
        (encode(halves(0, 2))[:45], "row 1: segments is not a readable image"),
        (b"nothing", "row 1: segments is not a readable image"),
        (None, "row 1: segments is not a readable image"),
    ],
    ids=["size", "mode", "cut", "foreign", "null"],
)
def test_a_label_that_does_not_fit_its_image_is_refused(tmp_path: Path, label: bytes | None, problem: str):
    good = encode(halves(0, 2))
    with pytest.raises(DataError, match=problem):
        load_dense_set(write(tmp_path, dense_table(segments=[good, label, good, good])), "train")


def test_a_source_without_label_columns_is_refused(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(plain(0))
    (tmp_path / "metadata.csv").write_text("file_name,split\na.png,train\n")
    with pytest.raises(DataError, match="is not Parquet"):
        load_dense_set(str(tmp_path), "train")
