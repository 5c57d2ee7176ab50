import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from elastic.data import fetch as fetching
from elastic.data import schema
from elastic.data.build_rooms import (
    SEGMENT_NAMES,
    RoomsConfig,
    build_rooms,
    cached_rooms,
    make_room,
    rooms_path,
    to_row,
    to_table,
)
from elastic.data.furniture import CATEGORIES
from elastic.data.render import Picture
from elastic.data.sources import open_source
from elastic.errors import ConfigError, DataError

from .models import entry, package, pieces

SMALL = RoomsConfig(num_train=3, num_val=1, num_test=2, image_size=16, num_pieces=3)


def pixels(encoded: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which a package of twenty boxes was fetched."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = {f"Box {number}": entry(category=CATEGORIES[number % 4]) for number in range(20)}
    wanted = fetching.PACKAGES["furniture"]
    package(tmp_path / "elastic" / "fetched" / f"{wanted.name}_{wanted.version}", names)
    return tmp_path


def picture() -> Picture:
    """Nothing, then the second of three pieces, then the third on two pixels."""
    instances = np.array([[0, 2], [3, 3]])
    depth = np.array([[0, 1.2344], [2.0006, 70.0]], np.float32)
    return Picture(rgb=np.zeros((2, 2, 3), np.uint8), depth=depth, instances=instances)


def test_a_row_says_what_every_pixel_shows(tmp_path: Path):
    three = [pieces(tmp_path, 1, category)[0] for category in ("Office", "Bathroom", "Kitchen")]
    row = to_row(picture(), three, "val")
    bathroom, kitchen = (SEGMENT_NAMES.index(name) for name in ("Bathroom", "Kitchen"))
    assert pixels(row["instances"]).tolist() == [[0, 2], [3, 3]]
    assert pixels(row["segments"]).tolist() == [[0, bathroom], [kitchen, kitchen]]
    # What does not fit 16 bits is unknown, like what was not hit.
    assert pixels(row["depth_mm"]).tolist() == [[0, 1234], [2001, 0]]
    assert [Image.open(io.BytesIO(row[name])).mode for name in ("segments", "instances", "depth_mm")] == [
        "L",
        "L",
        "I;16",
    ]


def test_caption_and_credits_name_what_is_in_sight_the_largest_first(tmp_path: Path):
    three = [pieces(tmp_path, 1, category)[0] for category in ("Office", "Bathroom", "Kitchen")]
    row = to_row(picture(), three, "val")
    assert row["caption"] == "Kitchen 0, Bathroom 0"
    assert row["attribution"] == "Kitchen 0 by Someone, CC0-1.0; Bathroom 0 by Someone, CC0-1.0"


def test_rows_follow_the_schema_and_name_the_segments(tmp_path: Path):
    table = to_table([to_row(picture(), pieces(tmp_path, 3), "val")])
    assert tuple(table.column_names) == (*schema.COLUMNS, "segments", "instances", "depth_mm", "attribution")
    assert table.schema.metadata is not None
    assert json.loads(table.schema.metadata[b"segment_names"]) == ["background", *CATEGORIES]
    row = table.to_pylist()[0]
    assert (row["domain"], row["label"], row["split"], row["source"]) == ("rooms", None, "val", "real")


def test_a_room_depends_on_its_seed_alone(tmp_path: Path):
    stock = pieces(tmp_path, 8)
    first, again, other = (make_room(stock, seed, "train", SMALL) for seed in ((0, 0, 1), (0, 0, 1), (0, 0, 2)))
    assert first == again
    assert first["image"] != other["image"]


def test_masks_and_depth_agree_with_the_room(tmp_path: Path):
    row = make_room(pieces(tmp_path, 8), (0, 0, 3), "train", SMALL)
    segments, instances, depth = (pixels(row[name]) for name in ("segments", "instances", "depth_mm"))
    assert pixels(row["image"]).shape == (16, 16, 3)
    assert segments.shape == instances.shape == depth.shape == (16, 16)
    assert ((segments > 0) == (instances > 0)).all()
    assert set(np.unique(segments)) == {0, SEGMENT_NAMES.index("Office")}
    assert depth.min() > 500
    assert row["caption"].count(",") == len(set(np.unique(instances)) - {0}) - 1


def test_the_built_set_is_opened_by_name(cache: Path):
    table = build_rooms(rooms_path(), SMALL, num_processes=1)
    source = open_source("rooms")
    assert source.metadata["split"].to_pylist() == ["train"] * 3 + ["val"] + ["test"] * 2
    assert source.read_images(np.arange(6)) == table["image"].to_pylist()
    assert pq.read_schema(cached_rooms()).metadata[b"segment_names"] == json.dumps(SEGMENT_NAMES).encode()
    assert [path.name for path in rooms_path().parent.iterdir() if path.is_file()] == [rooms_path().name]


def test_no_piece_is_in_two_splits(cache: Path):
    rows = build_rooms(cache / "set.parquet", SMALL, num_processes=1).to_pylist()
    train, test = (
        {piece for row in rows if row["split"] == split for piece in row["attribution"].split("; ")}
        for split in ("train", "test")
    )
    assert len(train) >= 3
    assert not train & test


def test_several_processes_render_the_same_rooms(cache: Path):
    alone = build_rooms(cache / "alone.parquet", SMALL, num_processes=1)
    assert build_rooms(cache / "together.parquet", SMALL, num_processes=2).equals(alone)


def test_a_set_that_was_not_built_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match="run `elastic data fetch furniture`, then `elastic data build rooms`"):
        open_source("rooms")
    with pytest.raises(DataError, match="run `elastic data fetch furniture`"):
        build_rooms(tmp_path / "set.parquet", SMALL, num_processes=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_val": -1},
        {"num_train": 0, "num_val": 0, "num_test": 0},
        {"image_size": 4},
        {"num_pieces": 0},
        {"num_pieces": 9},
    ],
)
def test_impossible_sets_are_refused(changes: dict[str, int]):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        RoomsConfig(**changes)


def test_no_process_cannot_build(tmp_path: Path):
    with pytest.raises(ConfigError, match="num_processes=0"):
        build_rooms(tmp_path / "set.parquet", SMALL, num_processes=0)
