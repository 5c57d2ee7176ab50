import pytest

from elastic.data import rows as numbering
from elastic.data.config import ClassBalanced, DataConfig, StreamConfig
from elastic.data.rows import Rows, shard_bytes, shard_images


def data(classes: int, views: int = 1) -> DataConfig:
    sampling = ClassBalanced(classes_per_batch=classes, images_per_class=2)
    return DataConfig(streams=(StreamConfig(sampling=sampling, views_per_image=views),))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_worker_meets_every_step_once_and_in_order(world: int):
    (rows,) = Rows.parts(data(48), 100, 51, world)
    count = rows.num_blocks * rows.block_steps
    for rank in range(world):
        steps = [step for step, its_rank in map(rows.locate, range(count)) if its_rank == rank]
        assert steps == list(range(100, 100 + len(steps)))
        assert [step for step in steps if not rows.is_padding(step)] == list(range(100, 151))


def test_blocks_belong_to_the_workers_in_turn():
    (rows,) = Rows.parts(data(48), 0, 40, 2)
    blocks = [
        {rows.locate(block * rows.block_steps + offset)[1] for offset in range(rows.block_steps)}
        for block in range(rows.num_blocks)
    ]
    assert blocks == [{0}, {1}] * (rows.num_blocks // 2)


def test_small_steps_share_a_block_and_large_ones_do_not():
    assert next(Rows.parts(data(128), 0, 10, 1)).block_steps == 4
    assert next(Rows.parts(data(512), 0, 10, 1)).block_steps == 1
    assert next(Rows.parts(data(2), 0, 10, 1)).block_steps == numbering.MAX_BLOCK_STEPS


def test_long_plans_are_cut_into_executions_without_a_gap(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(numbering, "MAX_BLOCKS", 8)
    parts = list(Rows.parts(data(1024), 3, 27, 2))
    assert [(part.start_step, part.stop_step) for part in parts] == [
        (3, 7),
        (7, 11),
        (11, 15),
        *((start, min(start + 4, 30)) for start in range(15, 30, 4)),
    ]
    assert all(part.num_blocks <= 8 for part in parts)


def test_no_steps_need_no_execution():
    assert list(Rows.parts(data(2), 5, 0, 1)) == []


def test_sizes_count_views():
    assert shard_images(data(8, views=3), 2) == 24
    assert shard_bytes(data(8, views=3), 2) == 24 * 3 * 32 * 32
