import io

import numpy as np
import pytest
from PIL import Image

from elastic.errors import DataError
from elastic.evaluate.metrics import NO_CLASS
from elastic.evaluate.probe_set import Part, dense_columns, load_dense, load_probe_set, name_classes

from .probing import IMAGES, record, records, write


def part(labels, captions, classes=None):
    named = sorted({label for label in labels if label is not None})
    numbers = [NO_CLASS if label is None else named.index(label) for label in labels]
    return Part(
        row_ids=np.arange(len(labels)),
        classes=np.array(classes or numbers),
        labels=tuple(labels),
        captions=tuple(captions),
        synthetic_captions=((),) * len(labels),
    )


def test_every_part_holds_the_rows_of_its_split(halves):
    data = load_probe_set(halves, "test", (), 100)
    assert {split: len(rows) for split, rows in data.parts.items()} == IMAGES
    assert data.train.row_ids.tolist() == list(range(24))
    assert data.tested.row_ids.tolist() == list(range(30, 42))
    assert data.tested.labels[:4] == ("red", "green", "blue", "red")
    assert data.tested.captions[1] == ("a green",)
    assert data.tested.synthetic_captions[4] == ("green on the right", "green")


def test_domains_that_the_tested_split_lacks_are_left_out_everywhere(tmp_path):
    more = [record(number, "train", domain="others") for number in range(5)]
    location = write(tmp_path / "set.parquet", [*more, *records()])
    data = load_probe_set(location, "test", (), 100)
    assert data.domains == ("halves",)
    assert data.train.row_ids.tolist() == list(range(5, 29))


def test_a_class_has_one_number_in_all_parts_and_another_in_another_domain(tmp_path):
    rows = [
        record(0, "train", label="a"),
        record(1, "train", label="b"),
        record(2, "test", label="b"),
        record(3, "test", label="a"),
        record(4, "test", label=None),
        record(5, "test", label="a", domain="others"),
    ]
    data = load_probe_set(write(tmp_path / "set.parquet", rows), "test", (), 100)
    a, b = data.train.classes.tolist()
    assert data.tested.classes[:3].tolist() == [b, a, NO_CLASS]
    assert data.tested.classes[3] not in (a, b, NO_CLASS)
    assert data.tested.labelled.tolist() == [0, 1, 3]


@pytest.mark.parametrize(("split", "domains"), [("test", ("halves", "rooms")), ("val", ("rooms",))])
def test_domains_without_a_row_to_test_are_refused(halves, split, domains):
    with pytest.raises(DataError, match=rf"no rows of split '{split}' and domains \['rooms'\] .*\['halves'\]"):
        load_probe_set(halves, split, domains, 100)


def test_a_split_without_rows_cannot_be_tested(tmp_path):
    location = write(tmp_path / "set.parquet", [record(0, "train")])
    with pytest.raises(DataError, match="no rows of split 'test'"):
        load_probe_set(location, "test", (), 100)


def test_at_most_so_many_images_of_a_split_are_kept_and_always_the_same_ones(halves):
    first, again = (load_probe_set(halves, "test", (), 9) for _ in range(2))
    assert [len(rows) for rows in first.parts.values()] == [9, 6, 9]
    assert first.train.row_ids.tolist() == again.train.row_ids.tolist() == sorted(set(first.train.row_ids.tolist()))
    assert first.train.row_ids.tolist() != list(range(9))


def test_labels_of_pixels_belong_to_the_images_that_were_kept(halves):
    data = load_probe_set(halves, "test", (), 9)
    table = {name: data.source.images.read_columns([name])[0][name].to_pylist() for name in ("segments", "depth_mm")}
    dense = load_dense(data)
    assert set(dense) == {"train", "test"}
    for split, labels in dense.items():
        rows = data.parts[split].row_ids
        assert labels.row_ids.tolist() == rows.tolist()
        for place, row in enumerate(rows.tolist()):
            for name in table:
                stored = np.asarray(Image.open(io.BytesIO(table[name][row])))
                assert np.array_equal(getattr(labels, name)[place], stored)


@pytest.mark.parametrize("without", [(), ("depth_mm",), ("segments", "depth_mm")])
def test_which_labels_of_pixels_a_source_has(tmp_path, without):
    data = load_probe_set(write(tmp_path / "set.parquet", records(), without), "test", (), 100)
    assert dense_columns(data.source) == {"segments", "depth_mm"} - set(without)


def test_a_folder_of_images_has_no_labels_of_pixels(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text("file_name,split\na.png,test\n")
    assert not dense_columns(load_probe_set(str(tmp_path), "test", (), 100).source)


def test_classes_are_called_by_their_labels_and_equal_names_are_one():
    named = name_classes(part(["b", None, "a", "b"], [()] * 4, classes=[7, NO_CLASS, 3, 5]), "label")
    assert named.names == ("a", "b")
    assert named.images.tolist() == [0, 2, 3]
    assert named.classes.tolist() == [1, 0, 1]


def test_classes_are_called_by_the_caption_that_most_of_their_images_carry():
    labels = ["1", "1", "1", "2", "2", "3"]
    captions = [("dog",), ("cat",), ("cat",), ("owl",), ("ant",), ()]
    named = name_classes(part(labels, captions), "caption")
    assert named.names == ("ant", "cat")  # owl and ant are a draw; class 3 has no name
    assert named.images.tolist() == [0, 1, 2, 3, 4]
    assert named.classes.tolist() == [1, 1, 1, 0, 0]
