from pathlib import Path

from elastic.data import icons
from elastic.data.inspection import check, count
from elastic.data.sources import open_source

from .drawing import table, write


def test_the_counts_of_the_icons_add_up():
    counts = count(open_source("icons"))
    assert len(counts) == 3 * icons.NUM_DOMAINS
    assert sum(part.num_images for part in counts.values()) == icons.NUM_IMAGES
    assert sum(part.num_classes for part in counts.values()) == icons.NUM_CLASSES
    assert counts["flags", "test"].num_images == 407
    assert all(part.num_uncaptioned == part.num_unlabelled == 0 for part in counts.values())


def test_parts_come_in_the_order_of_domains_and_splits(tmp_path: Path):
    columns = {"domain": ["b", "a", "b", "b"], "split": ["test", "val", "train", "val"]}
    counts = count(open_source(write(tmp_path, table(2, 2, **columns))))
    assert list(counts) == [("a", "val"), ("b", "train"), ("b", "val"), ("b", "test")]


def test_a_check_finds_the_broken_images(damaged: str):
    calls: list[None] = []
    report = check(open_source(damaged), None, on_image=lambda: calls.append(None))
    assert (report.num_checked, report.num_broken, len(calls)) == (36, 5, 36)
    assert [broken.row_id for broken in report.examples] == [0, 2, 3, 4, 5]
    assert "not a readable image" in report.examples[0].problem
    assert report.broken_fraction == 5 / 36


def test_a_sample_is_spread_over_the_set(damaged: str):
    report = check(open_source(damaged), 2)
    assert (report.num_rows, report.num_checked) == (36, 2)
    assert [broken.row_id for broken in report.examples] == [0]


def test_notes_say_what_the_metadata_rules_out(tmp_path: Path):
    columns = {"label": ["a", "b", None, "c"], "caption": ["x", None, "y", "z"]}
    report = check(open_source(write(tmp_path, table(2, 2, **columns))), None)
    assert report.notes == (
        "no rows of split 'val': you cannot choose between runs on it",
        "no rows of split 'test': you cannot evaluate on it",
        "1 of 4 rows have no label: class-balanced sampling and evaluation leave them out",
        "1 of 4 rows have no caption: objectives on text need one in every row",
        "1 of 1 parts have one image per class: nothing to retrieve but the query itself",
    )


def test_the_bundled_set_is_sound():
    report = check(open_source("icons"), 300)
    assert report.num_broken == 0
    assert report.notes == ()
