from pathlib import Path

import numpy as np
import pytest

from elastic.batch import NO_LABEL
from elastic.data import icons
from elastic.data.catalog import open_catalog, select_rows
from elastic.data.config import ClassBalanced, DataConfig, Shuffled, StreamConfig
from elastic.data.sources import open_source
from elastic.errors import DataError

from .conftest import stream
from .drawing import table, write


def config(*streams: StreamConfig, split: str = "train") -> DataConfig:
    return DataConfig(streams=streams, split=split)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_icons_have_the_documented_sizes(split: str):
    row_ids, rows = select_rows(open_source("icons"), split)
    assert len(row_ids) == rows.num_rows == icons.SPLIT_SIZES[split]


def test_numbers_count_in_sorted_names(tmp_path: Path):
    columns = {"label": ["b", "a", None, "a"], "domain": ["z", "z", "y", "y"], "caption_id": [None, "k", "j", "k"]}
    location = write(tmp_path, table(2, 2, **columns))
    catalog, _ = open_catalog(config(stream(location, sampling=Shuffled(batch_size=2))))
    rows = catalog.streams[0]
    assert catalog.domains == ("y", "z")
    assert catalog.classes == (("y", "a"), ("z", "a"), ("z", "b"))
    assert catalog.class_domains == (0, 1, 1)
    assert rows.domains.tolist() == [1, 1, 0, 0]
    assert rows.labels.tolist() == [2, 1, NO_LABEL, 0]
    assert rows.caption_ids.tolist() == [NO_LABEL, 1, 0, 1]


def test_streams_of_one_source_share_its_numbers():
    whole = StreamConfig(name="all", sampling=ClassBalanced(classes_per_batch=8))
    flags = StreamConfig(name="flags", domains=("flags",), sampling=ClassBalanced(classes_per_batch=8))
    catalog, sources = open_catalog(config(whole, flags))
    assert sources[0] is sources[1]
    assert catalog.num_classes == catalog.streams[0].num_classes == 1768
    assert catalog.streams[1].num_classes == 169
    labels = dict(zip(catalog.streams[0].row_ids.tolist(), catalog.streams[0].labels.tolist(), strict=True))
    assert all(labels[row] == label for row, label in zip(*map(np.ndarray.tolist, label_pairs(catalog)), strict=True))


def label_pairs(catalog) -> tuple[np.ndarray, np.ndarray]:
    return catalog.streams[1].row_ids, catalog.streams[1].labels


def test_class_places_partition_the_labelled_rows(shapes: str):
    rows = open_catalog(config(stream(shapes)))[0].streams[0]
    places = np.concatenate([rows.groups.places(index) for index in range(rows.num_classes)])
    assert sorted(places.tolist()) == list(range(36))
    assert all(len(set(rows.labels[rows.groups.places(index)])) == 1 for index in range(rows.num_classes))
    assert rows.places_like(4).tolist() == [3, 4, 5]


def test_rows_without_a_class_are_like_all_others(tmp_path: Path):
    location = write(tmp_path, table(2, 2, label=[None, None, "a", "b"]))
    rows = open_catalog(config(stream(location, sampling=Shuffled(batch_size=2))))[0].streams[0]
    assert rows.places_like(1).tolist() == [0, 1, 2, 3]
    assert rows.places_like(3).tolist() == [3]


def test_rows_of_one_caption_belong_together_where_batches_are_balanced_by_it(tmp_path: Path):
    location = write(tmp_path, table(2, 3, label=["a", "b", None] * 2, caption_id=["k", "j", "k", "j", None, "j"]))
    sampling = ClassBalanced(classes_per_batch=2, images_per_class=2, by="caption_id")
    rows = open_catalog(config(stream(location, sampling=sampling)))[0].streams[0]
    assert [rows.groups.places(index).tolist() for index in range(len(rows.groups))] == [[1, 3, 5], [0, 2]]
    assert rows.num_classes == 2
    assert rows.places_like(2).tolist() == [0, 2]
    assert rows.places_like(4).tolist() == list(range(6))


def test_too_few_captions_for_a_batch_is_an_error_before_the_first_step(tmp_path: Path):
    location = write(tmp_path, table(2, 2, caption_id=["k", "k", None, None]))
    sampling = ClassBalanced(classes_per_batch=2, by="caption_id")
    with pytest.raises(DataError, match=r"has 1 captions, wanted 2 a batch; lower .* if it has no caption_id"):
        open_catalog(config(stream(location, sampling=sampling)))


def test_present_fields_are_those_that_every_stream_fills(tmp_path: Path, shapes: str):
    bare = write(tmp_path, table(3, 1, caption=None, label=None, caption_id=None), "bare.parquet")
    shuffled = Shuffled(batch_size=2)
    full = open_catalog(config(stream(shapes)))[0]
    assert full.present >= {"labels", "caption_ids", "captions"}
    mixed = open_catalog(config(stream(shapes), stream(bare, name="bare", sampling=shuffled)))[0]
    assert mixed.present == {"images", "row_ids", "domains"}


def test_one_row_without_any_caption_takes_text_from_its_stream(tmp_path: Path):
    captions = ["a", None, "c", None]
    half = write(tmp_path, table(4, 1, caption=captions, synthetic_captions=[None, ["x"], None, []]))
    rows = open_catalog(config(stream(half)))[0].streams[0]
    assert not rows.has_captions
    whole = write(tmp_path, table(4, 1, caption=captions, synthetic_captions=[None, ["x"], None, ["y"]]))
    assert open_catalog(config(stream(whole)))[0].streams[0].has_captions


def test_texts_are_all_captions(tmp_path: Path):
    location = write(tmp_path, table(2, 1, caption=["a", None], synthetic_captions=[["x", "y"], ["z"]]))
    catalog, _ = open_catalog(config(stream(location, sampling=Shuffled(batch_size=1))))
    assert sorted(catalog.texts()) == ["a", "x", "y", "z"]


def test_an_unknown_domain_gets_the_nearest_name():
    with pytest.raises(DataError, match=r"icons: has no domain 'flag'; did you mean 'flags'\?"):
        open_catalog(config(StreamConfig(domains=("flag",))))


def test_an_empty_split_lists_what_there_is(shapes: str):
    with pytest.raises(DataError, match=r"has no rows of split 'test' \(rows by split: train: 36\)"):
        open_catalog(config(stream(shapes), split="test"))


def test_too_few_classes_for_a_batch_is_an_error_before_the_first_step(shapes: str):
    with pytest.raises(DataError, match="has 12 classes, wanted 13 a batch"):
        open_catalog(config(stream(shapes, sampling=ClassBalanced(classes_per_batch=13))))
