from typing import Any

import pytest

from elastic.data.config import ClassBalanced, DataConfig, Shuffled, StreamConfig
from elastic.errors import ConfigError


def test_the_default_is_the_bundled_set():
    config = DataConfig()
    assert [stream.source for stream in config.streams] == ["icons"]
    assert config.weights == (1.0,)


def test_batch_sizes_follow_from_the_sampling():
    assert ClassBalanced(classes_per_batch=5, images_per_class=3).batch_size == 15
    assert ClassBalanced(classes_per_batch=5, images_per_class=3).num_groups == 5
    assert Shuffled(batch_size=8).num_groups == 8


A, B, UNUSED = StreamConfig(name="a"), StreamConfig(name="b", weight=2.0), StreamConfig(name="c", weight=0.0)


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"streams": ()}, "data.streams"),
        ({"streams": (StreamConfig(), StreamConfig())}, "data.streams"),
        ({"streams": (StreamConfig(weight=0.0),)}, "data.streams"),
        ({"split": "validation"}, "data.split"),
        ({"canvas_size": 16}, "data.canvas_size"),
        ({"num_workers": 0}, "data.num_workers"),
        ({"max_bad_fraction": 1.5}, "data.max_bad_fraction"),
        ({"streams": (A, B), "segment_steps": 2}, "data.segment_steps"),
        ({"streams": (A, B), "order": "round_robin"}, "data.order"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], field: str):
    with pytest.raises(ConfigError, match=field):
        DataConfig(**changes)


def test_a_stream_whose_share_of_a_segment_is_one_step_is_accepted():
    assert DataConfig(streams=(A, B, UNUSED), segment_steps=3).weights == (1.0, 2.0, 0.0)


def test_streams_that_take_turns_may_leave_one_out():
    twin = StreamConfig(name="d")
    assert DataConfig(streams=(A, UNUSED, twin), order="round_robin", segment_steps=1).order == "round_robin"


@pytest.mark.parametrize(
    "changes",
    [{"weight": -1.0}, {"weight": float("nan")}, {"views_per_image": 0}, {"synthetic_caption_probability": 2.0}],
)
def test_impossible_streams_are_refused(changes: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"stream\."):
        StreamConfig(**changes)


def test_impossible_samplings_are_refused():
    with pytest.raises(ConfigError):
        ClassBalanced(images_per_class=0)
    with pytest.raises(ConfigError):
        Shuffled(batch_size=0)
