import numpy as np
import pytest

from elastic.errors import DataError
from elastic.evaluate.dataset import caption_queries, load_retrieval_set
from elastic.evaluate.metrics import NO_CLASS

from .conftest import COLOURS, IMAGES_PER_CLASS, rows, write_set


def test_only_labelled_rows_of_the_split_are_items(colours):
    data = load_retrieval_set(colours, "test")
    assert len(data) == len(COLOURS) * IMAGES_PER_CLASS
    assert data.row_ids.tolist() == list(range(15))
    assert np.bincount(data.classes).tolist() == [IMAGES_PER_CLASS] * len(COLOURS)


def test_an_unknown_or_unlabelled_split_says_which_splits_there_are(colours):
    with pytest.raises(DataError, match=r"0 labelled rows in split 'val' \(splits: test, train\)"):
        load_retrieval_set(colours, "val")


def test_canvases_come_in_order_with_the_broken_ones_marked(tmp_path):
    records = rows()[:3]
    records[1]["image"] = b"not an image"
    data = load_retrieval_set(write_set(tmp_path / "set.parquet", records), "test")
    batches = list(data.canvases(16, batch_size=2))
    assert [len(canvases) for canvases, _ in batches] == [2, 1]
    assert np.concatenate([broken for _, broken in batches]).tolist() == [False, True, False]
    first = batches[0][0][0]
    assert first[:3, 0, -1].tolist() == list(COLOURS["fruit", "apple"])


def test_keeping_a_part_keeps_every_column_aligned(colours):
    data = load_retrieval_set(colours, "test")
    part = data.keep(np.arange(15) % 5 == 0)
    assert part.row_ids.tolist() == [0, 5, 10]
    assert part.domains == tuple(data.domains[i] for i in (0, 5, 10))
    assert part.captions == tuple(data.captions[i] for i in (0, 5, 10))
    assert part.classes.tolist() == data.classes[[0, 5, 10]].tolist()


def test_a_caption_is_one_query_however_many_images_carry_it(colours):
    queries = caption_queries(load_retrieval_set(colours, "test"))
    assert queries.captions == ("a apple", "a lime", "a plum", "a info", "a stop")
    assert queries.domains == ("fruit", "fruit", "fruit", "sign", "sign")
    assert queries.classes.shape == (5, 1)


def test_a_caption_of_two_classes_accepts_both_within_its_domain(tmp_path):
    records = rows()[:9]
    for record in records[:6]:
        record["caption"] = "a thing"
    queries = caption_queries(load_retrieval_set(write_set(tmp_path / "set.parquet", records), "test"))
    assert queries.captions == ("a plum", "a thing")
    assert queries.classes.tolist() == [[2, NO_CLASS], [0, 1]]
