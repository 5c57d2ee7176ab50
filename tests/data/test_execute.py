from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elastic.data.augment import AugmentConfig
from elastic.data.catalog import open_catalog
from elastic.data.config import DataConfig, Shuffled
from elastic.data.decode import decode_all
from elastic.data.execute import Executor, Held, choose_caption, replacements
from elastic.data.plan import PlannedStep, Planner, Shard
from elastic.data.tokenizer import train_tokenizer
from elastic.errors import DataError

from .conftest import stream, two_streams
from .drawing import BROKEN, table, write

TOKENIZER = train_tokenizer([f"thing number {index}" for index in range(12)], 64)


def executor(data: DataConfig, *, held: bool = False) -> Executor:
    catalog, sources = open_catalog(data)
    parts: list[Held | None] = [None] * len(sources)
    if held:
        for number, (rows, source) in enumerate(zip(catalog.streams, sources, strict=True)):
            canvases, broken = decode_all(source.read_images(rows.row_ids), data.canvas_size)
            parts[number] = Held(canvases=[canvases[:20], canvases[20:]], broken=broken)
    return Executor(data, catalog, sources, TOKENIZER, 8, parts)


def shard_of(data: DataConfig, step: int, stream_number: int, rank: int = 0, world: int = 1) -> Shard:
    planner = Planner(data, open_catalog(data)[0], seed=5)
    weights = tuple(float(number == stream_number) for number in range(len(data.streams)))
    return planner.shard(planner.step(step, weights), rank, world)


def whole(places: list[int], seed: int = 0) -> Shard:
    planned = PlannedStep(step=0, stream=0, places=np.array(places), seed=seed)
    return Shard(planned=planned, start=0, stop=len(places))


def test_images_are_those_of_the_plan(shapes: str):
    data = two_streams(shapes, augment=AugmentConfig.identity())
    shard = shard_of(data, 2, 0)
    made = executor(data).execute(shard)
    # Image i of the set is a plain square of grey value i.
    assert made.images[:, 0, 0, 0].tolist() == shard.places.tolist()
    assert made.places.tolist() == shard.places.tolist()
    assert (made.num_read, made.num_broken) == (8, 0)


def test_views_follow_their_image(shapes: str):
    data = two_streams(shapes, augment=AugmentConfig.identity())
    shard = shard_of(data, 1, 1)
    made = executor(data).execute(shard)
    assert made.images[:, 0, 0, 0].tolist() == np.repeat(shard.places, 2).tolist()


@pytest.mark.parametrize("stream_number", [0, 1])
def test_parts_of_several_workers_are_the_whole(shapes: str, stream_number: int):
    data = two_streams(shapes)
    run = executor(data)
    alone = run.execute(shard_of(data, 4, stream_number))
    parts = [run.execute(shard_of(data, 4, stream_number, rank, 2)) for rank in range(2)]
    assert np.array_equal(alone.images, np.concatenate([part.images for part in parts]))
    texts = [part.captions.tokens[part.captions.index] for part in parts]
    assert alone.captions.tokens[alone.captions.index].tolist() == [row for part in texts for row in part.tolist()]


def test_held_and_read_images_give_the_same_views(damaged: str):
    data = two_streams(damaged)
    for step in range(6):
        shard = shard_of(data, step, step % 2)
        held, read = (executor(data, held=flag).execute(shard) for flag in (True, False))
        assert np.array_equal(held.images, read.images)
        assert held.places.tolist() == read.places.tolist()
        assert (held.num_read, held.num_broken) == (read.num_read, read.num_broken)


def test_a_broken_image_is_replaced_by_one_of_its_class(damaged: str):
    data = DataConfig(streams=(stream(damaged),), image_size=8, canvas_size=16)
    made = executor(data).execute(whole([0, 1, 2, 6]))
    assert made.places.tolist() == [1, 1, 1, 6]
    # 0 -> 1 costs one broken image; 2 meets 0 on its way round to 1.
    assert (made.num_broken, made.num_read) == (3, 7)


def test_a_class_without_readable_images_takes_the_next_of_the_stream(damaged: str):
    data = DataConfig(streams=(stream(damaged),), image_size=8, canvas_size=16)
    assert executor(data).execute(whole([3, 6])).places.tolist() == [6, 6]


def test_a_stream_without_readable_images_is_an_error(tmp_path: Path):
    location = write(tmp_path, table(4, 1, image=[BROKEN] * 4))
    data = DataConfig(streams=(stream(location),), image_size=8, canvas_size=16)
    with pytest.raises(DataError, match="has no readable image left"):
        executor(data).execute(whole([0, 1]))


def test_replacements_reach_every_other_row(shapes: str):
    rows = open_catalog(DataConfig(streams=(stream(shapes),)))[0].streams[0]
    found = list(replacements(rows, 4))
    assert found[:4] == [5, 3, 5, 6]
    assert set(found) == set(range(36)) - {4}


def test_images_of_one_caption_share_one_text(tmp_path: Path):
    synthetic = [[f"first of {index}", f"second of {index}"] for index in range(12)]
    location = write(tmp_path, table(4, 3, synthetic_captions=synthetic))
    data = DataConfig(streams=(stream(location),), image_size=8, canvas_size=16)
    run = executor(data)
    texts = set()
    for seed in range(20):
        made = run.execute(whole([0, 1, 2, 3, 4, 5], seed))
        assert made.captions.index.tolist() == [0, 0, 0, 1, 1, 1]
        assert made.captions.tokens.shape[0] == len(made.captions.num_tokens) == 2
        texts.add(made.captions.tokens[0].tobytes())
    assert len(texts) > 1


def test_equal_texts_of_different_captions_are_one_row(tmp_path: Path):
    location = write(tmp_path, table(4, 1, caption=["thing"] * 4, caption_id=None))
    data = DataConfig(streams=(stream(location),), image_size=8, canvas_size=16)
    made = executor(data).execute(whole([0, 1, 3]))
    assert made.captions.index.tolist() == [0, 0, 0]
    assert len(made.captions.tokens) == 1


def test_without_captions_there_are_no_tokens(tmp_path: Path):
    location = write(tmp_path, table(4, 1, caption=None))
    data = DataConfig(streams=(stream(location, sampling=Shuffled(batch_size=2)),), image_size=8, canvas_size=16)
    made = executor(data).execute(whole([0, 1]))
    assert made.captions is None and made.synthetic_captions is None


def test_synthetic_captions_are_chosen_as_often_as_asked(tmp_path: Path):
    location = write(tmp_path, table(2, 1, caption=["real", None], synthetic_captions=[["made"], ["made"]]))
    rows = open_catalog(DataConfig(streams=(stream(location, sampling=Shuffled(batch_size=1)),)))[0].streams[0]
    dice = [np.random.default_rng(seed) for seed in range(400)]
    share = np.mean([choose_caption(rows, 0, 0.25, random) == "made" for random in dice])
    assert share == pytest.approx(0.25, abs=0.07)
    assert {choose_caption(rows, 1, 0.0, random) for random in dice[:20]} == {"made"}


def test_canvases_come_from_the_part_that_holds_them():
    parts = [np.full((2, 4, 1, 1), 1, np.uint8), np.full((1, 4, 1, 1), 2, np.uint8)]
    held = Held(canvases=parts, broken=np.zeros(3, bool))
    assert held.take(np.array([2, 0, 1]))[:, 0, 0, 0].tolist() == [2, 1, 1]


def test_the_largest_image_that_is_decoded_is_configured(shapes: str):
    data = replace(two_streams(shapes), max_pixels=16 * 16 - 1)
    with pytest.raises(DataError, match="no readable image"):
        executor(data).execute(whole([0, 1]))
