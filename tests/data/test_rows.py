import pytest

from elastic.data import rows as numbering
from elastic.data.config import ClassBalanced, DataConfig, StreamConfig
from elastic.data.rows import Rows, shard_bytes, shard_images


def data(classes: int, views: int = 1, segment_steps: int = 1000) -> DataConfig:
    sampling = ClassBalanced(classes_per_batch=classes, images_per_class=2)
    streams = (StreamConfig(sampling=sampling, views_per_image=views),)
    return DataConfig(streams=streams, segment_steps=segment_steps)


def located(rows: Rows) -> list[tuple[int | None, int]]:
    return [rows.locate(row) for row in range(rows.num_blocks * rows.block_steps)]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("segment_steps", [1000, 37, 5, 1])
def test_every_worker_meets_every_step_once_and_in_order(world: int, segment_steps: int):
    (rows,) = Rows.parts(data(48, segment_steps=segment_steps), 101, 50, world)
    for rank in range(world):
        steps = [step for step, its_rank in located(rows) if its_rank == rank and step is not None]
        assert steps == list(range(101, 151))


def test_blocks_belong_to_the_workers_in_turn():
    (rows,) = Rows.parts(data(48), 0, 40, 2)
    ranks = [rank for _, rank in located(rows)]
    blocks = [set(ranks[start : start + rows.block_steps]) for start in range(0, len(ranks), rows.block_steps)]
    assert blocks == [{0}, {1}] * (rows.num_blocks // 2)


@pytest.mark.parametrize("start", [0, 3, 10, 12])
def test_no_block_reaches_into_another_segment(start: int):
    (rows,) = Rows.parts(data(8, segment_steps=10), start, 44, 1)
    steps = [step for step, _ in located(rows)]
    for block in range(rows.num_blocks):
        inside = steps[block * rows.block_steps : (block + 1) * rows.block_steps]
        assert len({step // 10 for step in inside if step is not None}) == 1


def test_small_steps_share_a_block_and_large_ones_do_not():
    assert next(Rows.parts(data(128), 0, 10, 1)).block_steps == 4
    assert next(Rows.parts(data(512), 0, 10, 1)).block_steps == 1
    assert next(Rows.parts(data(2), 0, 10, 1)).block_steps == numbering.MAX_BLOCK_STEPS


@pytest.mark.parametrize("start", [0, 3, 17])
def test_long_plans_are_cut_into_executions_without_a_gap(start: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numbering, "MAX_BLOCKS", 8)
    parts = list(Rows.parts(data(128, segment_steps=10), start, 60, 2))
    steps = [step for part in parts for step, rank in located(part) if rank == 1 and step is not None]
    assert steps == list(range(start, start + 60))
    assert len(parts) > 2
    assert all(part.num_blocks <= 8 for part in parts)


def test_no_steps_need_no_execution():
    assert list(Rows.parts(data(2), 5, 0, 1)) == []


def test_sizes_count_views():
    assert shard_images(data(8, views=3), 2) == 24
    assert shard_bytes(data(8, views=3), 2) == 24 * 3 * 32 * 32
