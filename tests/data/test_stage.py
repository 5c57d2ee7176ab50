import pickle
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from elastic.data.config import DataConfig
from elastic.data.execute import ShardArrays
from elastic.data.feed import FeedConfig, open_streams
from elastic.data.pool import decode_part
from elastic.data.rows import Rows
from elastic.data.stage import Job, Parts, Stage
from elastic.data.weights import Weights
from elastic.errors import DataError

from .conftest import feed_config, two_streams
from .drawing import BROKEN, table, write

pytestmark = pytest.mark.ray


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """A stage settles for one thread, which the other tests need not."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def job(config: FeedConfig, *, is_held: bool = False) -> Job:
    data = config.data
    catalog, sources = open_streams(data, 1)
    parts: list[Parts | None] = [None] * len(sources)
    if is_held:
        row_ids = np.arange(36)
        halves = [
            [decode_part(source, half, data.canvas_size, data.max_pixels) for half in np.split(row_ids, 2)]
            for source in sources
        ]
        parts = [
            Parts(canvases=[ray.put(canvases) for canvases, _ in pair], broken=np.concatenate([b for _, b in pair]))
            for pair in halves
        ]
    return Job(
        data=data,
        seed=config.seed,
        catalog=catalog,
        sources=sources,
        tokenizer=config.tokenizer,
        max_tokens=config.max_tokens,
        parts=parts,
    )


def board(weights: Weights | None) -> SimpleNamespace:
    """A board whose answer is always there, with the questions it was asked."""
    asked: list[int] = []

    def remote(segment: int) -> ray.ObjectRef:
        asked.append(segment)
        return ray.put(weights)

    return SimpleNamespace(get_weights=SimpleNamespace(remote=remote), asked=asked)


def rows(data: DataConfig, num_steps: int) -> Rows:
    (numbering,) = Rows.parts(data, 0, num_steps, 1)
    return numbering


def make(stage: Stage, numbers: list[int]) -> list[ShardArrays | DataError | None]:
    made = stage(pa.table({"id": numbers}))
    assert made["id"].to_pylist() == numbers
    return [pickle.loads(payload.as_buffer()) for payload in made["payload"]]


def test_what_is_held_decoded_makes_the_same_rows_as_what_is_read(local_ray: None, damaged: str):
    config = feed_config(two_streams(damaged))
    numbering = rows(config.data, 10)
    stages = [Stage(job(config, is_held=is_held), board((1.0, 1.0)), numbering) for is_held in (False, True)]
    read, held = (make(stage, list(range(10))) for stage in stages)
    for step, (first, second) in enumerate(zip(read, held, strict=True)):
        assert isinstance(first, ShardArrays) and isinstance(second, ShardArrays)
        assert first.step == step
        torch.testing.assert_close(asdict(first), asdict(second), rtol=0, atol=0)


def test_weights_are_asked_for_once_a_segment(local_ray: None, shapes: str):
    config = feed_config(two_streams(shapes))
    asking = board((1.0, 1.0))
    make(Stage(job(config), asking, rows(config.data, 15)), list(range(15)))
    assert asking.asked == [0, 1, 2]


def test_padding_and_rows_of_a_closed_feed_are_empty(local_ray: None, shapes: str):
    config = feed_config(two_streams(shapes))
    open_stage, closed = (Stage(job(config), board(weights), rows(config.data, 7)) for weights in ((1.0, 1.0), None))
    assert [row is None for row in make(open_stage, list(range(10)))] == [False] * 7 + [True] * 3
    assert make(closed, [0, 1, 2]) == [None] * 3


def test_an_error_of_ours_is_a_row(local_ray: None, tmp_path: Path):
    config = feed_config(two_streams(write(tmp_path, table(12, 3, image=[BROKEN] * 36))))
    (found,) = make(Stage(job(config), board((1.0, 1.0)), rows(config.data, 5)), [0])
    assert isinstance(found, DataError) and "no readable image left" in str(found)
