from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from elastic.data.catalog import Catalog, open_catalog
from elastic.data.config import ClassBalanced, DataConfig, Shuffled
from elastic.data.plan import PlannedStep, Planner, shares, weigh_by_size
from elastic.errors import ConfigError

from .conftest import stream, two_streams
from .drawing import table, write

EVEN = (1.0, 1.0)


@pytest.fixture
def data(shapes: str) -> DataConfig:
    return two_streams(shapes)


@pytest.fixture
def catalog(data: DataConfig) -> Catalog:
    return open_catalog(data)[0]


@pytest.fixture
def planner(data: DataConfig, catalog: Catalog) -> Planner:
    return Planner(data, catalog, seed=3)


def described(planned: PlannedStep) -> tuple[int, int, tuple[int, ...], int]:
    return planned.step, planned.stream, tuple(planned.places.tolist()), planned.seed


def test_any_step_can_be_planned_alone_and_in_any_order(data: DataConfig, catalog: Catalog):
    forward = Planner(data, catalog, seed=3)
    inorder = [described(forward.step(step, EVEN)) for step in range(60)]
    backward = Planner(data, catalog, seed=3)
    assert [described(backward.step(step, EVEN)) for step in reversed(range(60))] == inorder[::-1]
    assert described(Planner(data, catalog, seed=3).step(41, EVEN)) == inorder[41]


def test_another_seed_is_another_plan(data: DataConfig, catalog: Catalog, planner: Planner):
    other = Planner(data, catalog, seed=4)
    assert all(described(planner.step(step, EVEN)) != described(other.step(step, EVEN)) for step in range(20))


def test_shards_of_any_number_of_workers_are_the_batch(planner: Planner):
    for step in range(30):
        planned = planner.step(step, EVEN)
        for world in (1, 2):
            shards = [planner.shard(planned, rank, world) for rank in range(world)]
            assert np.concatenate([shard.places for shard in shards]).tolist() == planned.places.tolist()
            assert len({len(shard.places) for shard in shards}) == 1


def test_images_of_a_class_stay_together(planner: Planner, catalog: Catalog):
    planned = planner.step(0, (1.0, 0.0))
    labels = [catalog.streams[0].labels[planner.shard(planned, rank, 4).places] for rank in range(4)]
    assert [len(set(part.tolist())) for part in labels] == [1, 1, 1, 1]
    assert len({part[0] for part in labels}) == 4


def test_a_number_of_workers_that_does_not_divide_is_refused(planner: Planner):
    with pytest.raises(ConfigError, match="must be a multiple of 3 workers"):
        planner.shard(planner.step(0, (1.0, 0.0)), 0, 3)


@pytest.mark.parametrize(
    ("weights", "count", "expected"),
    [
        ((4, 1, 3), 1000, (500, 125, 375)),
        ((0.75, 0.125, 0.25), 1000, (666, 111, 223)),
        ((1, 1, 1), 100, (33, 33, 34)),
        ((0.29, 0.71), 100, (29, 71)),  # 100 * 0.29 is a little below 29 in binary
        ((1, 2, 0), 4, (1, 3, 0)),
        ((0, 5), 3, (0, 3)),
    ],
)
def test_a_segments_steps_are_shared_out_exactly(weights: tuple[float, ...], count: int, expected: tuple[int, ...]):
    assert shares(weights, count) == expected


@pytest.mark.parametrize("weights", [EVEN, (3.0, 2.0), (0.0, 1.0)])
def test_every_segment_has_each_streams_share(planner: Planner, weights: tuple[float, float]):
    for segment in range(6):
        streams = [planner.step(step, weights).stream for step in range(5 * segment, 5 * segment + 5)]
        assert (streams.count(0), streams.count(1)) == shares(weights, 5)


def test_the_order_is_drawn_anew_for_each_segment_and_seed_and_not_for_each_planner(data: DataConfig, catalog: Catalog):
    long = replace(data, segment_steps=50)

    def orders(seed: int) -> list[list[int]]:
        planner = Planner(long, catalog, seed)
        return [[planner.step(50 * segment + step, EVEN).stream for step in range(50)] for segment in range(3)]

    assert orders(3) == orders(3)
    distinct = {tuple(order) for seed in (3, 4) for order in orders(seed)}
    assert len(distinct) == 6 and all(sorted(order) == [0] * 25 + [1] * 25 for order in distinct)


def test_what_a_segment_was_weighted_before_does_not_matter(data: DataConfig, catalog: Catalog):
    changing, fresh = Planner(data, catalog, seed=3), Planner(data, catalog, seed=3)
    for step in range(5):
        changing.step(step, (4.0, 1.0))
    assert [described(changing.step(step, EVEN)) for step in range(10)] == [
        described(fresh.step(step, EVEN)) for step in range(10)
    ]


def test_streams_can_take_turns(shapes: str):
    streams = tuple(stream(shapes, name=str(index), weight=float(index != 1)) for index in range(4))
    data = DataConfig(streams=streams, order="round_robin", segment_steps=5)
    planner = Planner(data, open_catalog(data)[0], seed=3)
    assert [planner.step(step, data.weights).stream for step in range(8)] == [0, 2, 3, 0, 2, 3, 0, 2]
    with pytest.raises(ConfigError, match="must be equal, or 0, where streams take turns"):
        planner.step(0, (1.0, 1.0, 2.0, 1.0))


def test_streams_weighted_by_size_show_every_row_equally_often(tmp_path: Path):
    many, few = write(tmp_path, table(12, 3), "many.parquet"), write(tmp_path, table(4, 3), "few.parquet")
    data = weigh_by_size(DataConfig(streams=(stream(many, name="many"), stream(few, name="few", weight=9.0))))
    assert data.weights == (36.0, 12.0)
    assert shares(data.weights, 1000) == (750, 250)


def test_weights_change_the_stream_and_not_what_it_shows(planner: Planner):
    for step in range(50):
        first, second = planner.step(step, EVEN), planner.step(step, (1.0, 9.0))
        assert first.stream != second.stream or described(first) == described(second)


def test_balanced_batches_have_distinct_classes_and_distinct_images(planner: Planner, catalog: Catalog):
    for step in range(40):
        places = planner.step(step, (1.0, 0.0)).places
        assert Counter(Counter(catalog.streams[0].labels[places].tolist()).values()) == {2: 4}
        assert len(set(places.tolist())) == 8


def test_a_class_with_too_few_images_repeats_them_evenly(shapes: str):
    many = stream(shapes, sampling=type(stream(shapes).sampling)(classes_per_batch=2, images_per_class=7))
    data = DataConfig(streams=(many,))
    places = Planner(data, open_catalog(data)[0], seed=0).step(0, (1.0,)).places
    assert sorted(Counter(places[:7].tolist()).values()) == [2, 2, 3]


def test_batches_balanced_by_caption_hold_all_images_of_distinct_captions(tmp_path: Path):
    # Labels cut across captions, and every fifth row has none of the latter.
    captions = [None if index % 5 == 4 else f"k{index // 5}" for index in range(40)]
    location = write(tmp_path, table(8, 5, label=[f"c{index % 3}" for index in range(40)], caption_id=captions))
    sampling = ClassBalanced(classes_per_batch=6, images_per_class=4, by="caption_id")
    data = DataConfig(streams=(stream(location, sampling=sampling),))
    catalog = open_catalog(data)[0]
    planner = Planner(data, catalog, seed=0)
    for step in range(20):
        planned = planner.step(step, (1.0,))
        parts = [catalog.streams[0].caption_ids[planner.shard(planned, rank, 3).places] for rank in range(3)]
        assert [sorted(Counter(part.tolist()).values()) for part in parts] == [[4, 4]] * 3
        assert len(set(planned.places.tolist())) == 24 and len(set(np.concatenate(parts))) == 6


def test_every_class_and_image_is_shown_in_time(planner: Planner):
    seen = {place for step in range(200) for place in planner.step(step, (1.0, 0.0)).places.tolist()}
    assert seen == set(range(36))


def test_one_shuffled_stream_shows_each_row_once_an_epoch(shapes: str):
    data = DataConfig(streams=(stream(shapes, sampling=Shuffled(batch_size=10)),))
    planner = Planner(data, open_catalog(data)[0], seed=1)
    rows = np.concatenate([planner.step(step, (1.0,)).places for step in range(36)])
    epochs = rows.reshape(10, 36)
    assert all(sorted(epoch.tolist()) == list(range(36)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_augmentation_seeds_do_not_repeat(planner: Planner):
    assert len({planner.step(step, EVEN).seed for step in range(200)}) == 200


def test_segments_count_steps(planner: Planner):
    assert [planner.segment(step) for step in (0, 4, 5, 14)] == [0, 0, 1, 2]
