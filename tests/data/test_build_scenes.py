import hashlib
import io
import json
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from elastic.data import build_scenes, scenes, schema
from elastic.data.build_scenes import cached_scenes, compose, draw_start, write_scenes
from elastic.data.scene_captions import Thing, detailed_caption, short_caption
from elastic.data.scene_classes import CutOut, SceneClass, choose_classes
from elastic.data.scenes import SceneConfig
from elastic.errors import ConfigError

from .drawing import encode

SMALL = SceneConfig(num_train=96, num_val=8, num_test=48, num_captions=24)


@pytest.fixture(scope="module")
def classes() -> tuple[SceneClass, ...]:
    return choose_classes(SMALL)


@pytest.fixture(autouse=True)
def _chosen_once(monkeypatch: pytest.MonkeyPatch, classes: tuple[SceneClass, ...]) -> None:
    # Choosing takes longer than composing a small set.
    monkeypatch.setattr(build_scenes, "choose_classes", lambda config: classes)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return build_scenes.build_scenes(SMALL)


def pixels_of(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


def things_of(row: dict) -> list[Thing]:
    return [Thing(**each) for each in row["objects"]]


def squares(colours: dict[str, tuple[int, int, int, int]]) -> tuple[SceneClass, ...]:
    """Classes drawn as plain squares, so that areas and colours are known."""
    made = []
    for name, colour in colours.items():
        cut_outs = (CutOut(encode(np.full((64, 64, 4), colour, np.uint8))),)
        made.append(SceneClass(name=name, domain="emoji-objects", cut_outs=dict.fromkeys(schema.SPLITS, cut_outs)))
    return tuple(made)


def thing(name: str, row: int, column: int) -> Thing:
    return Thing(name=name, domain="emoji-objects", row=row, column=column)


SQUARES = squares({"red": (250, 0, 0, 255), "lime": (0, 250, 0, 255), "navy": (0, 0, 120, 255)})
BESIDE = [thing("red", 1, 1), thing("lime", 1, 0), thing("navy", 0, 1)]


def test_rows_have_the_columns_of_the_contract(table: pa.Table):
    assert table.schema.names == [*schema.COLUMNS, "segments", "instances", "objects"]
    assert schema.conform(table, "scenes").num_rows == SMALL.num_rows == 248
    counts = Counter((row["domain"], row["source"], row["split"]) for row in table.to_pylist())
    assert counts == {
        ("scenes", "real", "train"): 96,
        ("scenes", "real", "val"): 8,
        ("scenes", "real", "test"): 48,
        ("scenes-synthetic", "synthetic", "train"): 96,
    }


def test_a_real_scene_is_labelled_with_its_salient_object_and_classes_are_balanced(table: pa.Table):
    real = [row for row in table.to_pylist() if row["domain"] == "scenes"]
    assert all(row["label"] == row["objects"][0]["name"] and row["caption_id"] is None for row in real)
    assert set(Counter(row["label"] for row in real if row["split"] == "train").values()) == {2}
    assert set(Counter(row["label"] for row in real if row["split"] == "test").values()) == {1}


def test_a_real_scene_has_a_detailed_and_a_short_caption_of_nearly_all_its_objects(table: pa.Table):
    num_objects, num_named = 0, [0, 0]
    for row in table.to_pylist()[:152]:
        detailed, short = row["synthetic_captions"]
        things = things_of(row)
        named = [each for each in things if detailed_caption([each]) in detailed.split(", ")]
        listed = [each for each in things if each.name in short]
        assert detailed_caption(named) == detailed
        assert short_caption(listed) == short
        num_objects += len(things)
        num_named = [num_named[0] + len(named), num_named[1] + len(listed)]
    # Standard error of the share: 0.01.
    assert np.array(num_named) / num_objects == pytest.approx([0.95, 0.95], abs=0.04)


def test_objects_of_a_scene_differ_in_class_and_place(table: pa.Table):
    for row in table.to_pylist():
        things = things_of(row)
        assert 2 <= len(things) <= 4
        assert len({each.name for each in things}) == len({(each.row, each.column) for each in things}) == len(things)


def test_images_of_one_caption_share_it_and_look_different(table: pa.Table):
    groups: dict[str, list[dict]] = {}
    for row in table.to_pylist()[152:]:
        groups.setdefault(row["caption_id"], []).append(row)
    assert {len(group) for group in groups.values()} == {4}
    assert len({group[0]["synthetic_captions"][0] for group in groups.values()}) == len(groups) == 24
    for group in groups.values():
        caption, things = group[0]["synthetic_captions"][0], things_of(group[0])
        assert detailed_caption(things) == caption
        for row in group:
            assert things_of(row) == things and row["label"] is row["caption"] is None
            assert row["synthetic_captions"] == [caption, short_caption(things)]
        assert len({row["image"] for row in group}) == len({row["instances"] for row in group}) == 4


def test_segments_are_the_domains_of_the_instances(table: pa.Table):
    for row in table.to_pylist()[::5]:
        image, segments, instances = (pixels_of(row[name]) for name in ("image", "segments", "instances"))
        assert image.shape == (64, 64, 3)
        assert segments.shape == instances.shape == (64, 64)
        assert segments.dtype == instances.dtype == np.uint8
        numbers = [scenes.SEGMENT_NAMES.index(each["domain"]) for each in row["objects"]]
        assert set(np.unique(instances)) == set(range(len(numbers) + 1))
        assert np.array_equal(segments, np.array([0, *numbers])[instances])


def test_the_middle_of_an_object_lies_where_the_caption_says(table: pa.Table):
    config = SceneConfig(num_train=60, num_val=0, num_test=0, num_captions=1, num_objects=(1, 1))
    places = set()
    for row in build_scenes.build_scenes(config).to_pylist():
        (only,) = things_of(row)
        inside = np.argwhere(pixels_of(row["instances"]))
        middle = (inside.min(0) + inside.max(0) + 1) / 2
        # Faint edges of a drawing are outside of its mask.
        assert np.abs(middle - (np.array([only.row, only.column]) + 0.5) * 64 / 3).max() <= 64 / 6 + 1
        assert 28 <= (inside.max(0) - inside.min(0) + 1).max() <= 40
        places.add((only.row, only.column))
    assert len(places) == 9


def test_places_cover_a_cell_and_cut_nothing_off():
    rng = np.random.default_rng(0)
    for cell in range(3):
        for side in (7, 14, 42):
            starts = {draw_start(rng, cell, side, 64) for _ in range(2000)}
            allowed = {start for start in range(64 - side + 1) if cell <= (start + side / 2) * 3 / 64 < cell + 1}
            assert starts == allowed


def test_everything_stays_visible_as_far_as_asked():
    config = SceneConfig(salient_px=(36, 36), other_px=(20, 20))
    covered = 0
    for seed in range(60):
        picture = compose(np.random.default_rng(seed), config, SQUARES, BESIDE, "train")
        salient, *others = np.bincount(picture.instances.ravel(), minlength=4)[1:]
        assert 0.85 * 36**2 <= salient <= 36**2
        assert all(0.7 * 20**2 <= other <= 20**2 for other in others)
        covered += salient < 36**2 or min(others) < 20**2
    assert covered > 5


def test_an_opaque_object_has_its_colour_exactly_on_its_instance():
    colours = {1: (250, 0, 0), 2: (0, 250, 0), 3: (0, 0, 120)}
    for seed in range(20):
        picture = compose(np.random.default_rng(seed), SceneConfig(), SQUARES, BESIDE, "test")
        for number, colour in colours.items():
            inside = picture.instances == number
            assert np.array_equal(inside, (picture.pixels == colour).all(2))


def test_a_translucent_object_mixes_with_what_is_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build_scenes, "draw_background", lambda rng, size: np.full((size, size, 3), 100.0))
    classes = squares({"veil": (250, 0, 0, 204)})
    picture = compose(np.random.default_rng(0), SceneConfig(), classes, [thing("veil", 1, 1)], "train")
    inside = picture.instances == 1
    assert (np.abs(picture.pixels[inside] - np.array([0.8 * 250 + 20, 20, 20])) <= 1).all()
    assert (picture.pixels[~inside] == 100).all()


def test_a_background_that_hides_an_object_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    levels = iter([45.0, 55.0, 95.0])
    monkeypatch.setattr(build_scenes, "draw_background", lambda rng, size: np.full((size, size, 3), next(levels)))
    grey = squares({"grey": (50, 50, 50, 255)})
    picture = compose(np.random.default_rng(0), SceneConfig(), grey, [thing("grey", 0, 0)], "train")
    assert set(np.unique(picture.pixels)) == {50, 95}


def test_objects_that_cannot_all_be_shown_are_refused():
    config = SceneConfig(salient_px=(42, 42), other_px=(42, 42), min_visible=1.0, min_salient_visible=1.0)
    with pytest.raises(ConfigError, match="no layout of 3 objects in 1000 shows them all"):
        compose(np.random.default_rng(0), config, SQUARES, BESIDE, "train")


def test_more_captions_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build_scenes, "choose_classes", lambda config: SQUARES)
    config = SceneConfig(num_train=1, num_val=0, num_test=0, images_per_caption=1, num_objects=(1, 1), num_captions=28)
    with pytest.raises(ConfigError, match="only 27 different captions"):
        build_scenes.build_scenes(config)


def test_a_scene_follows_from_the_seed_and_its_number_alone(table: pa.Table):
    fewer = SceneConfig(num_train=5, num_val=2, num_test=3, num_captions=2)
    again = build_scenes.build_scenes(fewer).to_pylist()
    rows = table.to_pylist()
    assert again == [*rows[:5], *rows[96:98], *rows[104:107], *rows[152:160]]
    other = build_scenes.build_scenes(SceneConfig(num_train=5, num_val=0, num_test=0, num_captions=1, seed=1))
    assert not set(other["image"].to_pylist()) & set(table["image"].to_pylist())


def test_rows_that_change_get_a_new_version(table: pa.Table):
    digest = hashlib.sha1()
    for row in table.to_pylist():
        digest.update(json.dumps([row[name] for name in ("caption", "synthetic_captions", "label")]).encode())
        # Not of the images: the last digit of a sine, and so a pixel, may differ between processors.
        digest.update(pixels_of(row["instances"]).tobytes())
    known = {2: "a9172e865a7504e267646419ed017681b870b706"}
    assert known[scenes.VERSION] == digest.hexdigest(), "cached sets are stale: add 1 to VERSION"


def test_the_file_names_its_segments_and_is_readable_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(build_scenes, "ROWS_PER_GROUP", 8)
    out = tmp_path / "new" / "scenes.parquet"
    config = SceneConfig(num_train=7, num_val=0, num_test=0, num_captions=1)
    num_images = iter(range(1000))
    written = write_scenes(out, config, on_image=lambda: next(num_images))
    assert next(num_images) == config.num_rows
    file = pq.ParquetFile(out)
    assert json.loads(file.schema_arrow.metadata[b"segment_names"]) == list(scenes.SEGMENT_NAMES)
    assert [file.metadata.row_group(group).num_rows for group in range(2)] == [8, 3]
    assert file.read().equals(written)
    assert list(out.parent.iterdir()) == [out]


def test_a_build_that_fails_leaves_nothing(tmp_path: Path):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scenes(tmp_path / "scenes.parquet", SMALL, on_image=stop)
    assert not list(tmp_path.iterdir())


def test_builders_at_the_same_time_leave_one_whole_file(tmp_path: Path):
    config = SceneConfig(num_train=20, num_val=0, num_test=0, num_captions=1)
    out = tmp_path / "scenes.parquet"
    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(lambda _: write_scenes(out, config), range(3))
    assert all(first.equals(other) for other in others)
    assert pq.read_table(out).equals(first)
    assert list(tmp_path.iterdir()) == [out]


def test_the_cache_is_filled_once_with_a_word_about_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    config = SceneConfig(num_train=2, num_val=0, num_test=0, num_captions=1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build_scenes, "SceneConfig", lambda: config)
    with caplog.at_level(logging.WARNING):
        path = cached_scenes()
        assert path.is_relative_to(tmp_path)
        assert str(path) in caplog.text
        caplog.clear()
        first = path.stat().st_mtime_ns
        assert cached_scenes() == path
    assert path.stat().st_mtime_ns == first
    assert not caplog.text
