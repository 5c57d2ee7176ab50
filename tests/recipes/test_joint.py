"""The joint run: streams feed what they are meant to, and one step of each kind of stream trains that."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from elastic.batch import Batch
from elastic.data.feed import LocalFeed
from elastic.recipes.joint import LABELLED_SHARE, joint
from elastic.train.preparation import carried_fields, check_data, dimensions, feed_config, make_tokenizer
from elastic.train.state import TrainState
from elastic.train.step import train_step

pytestmark = pytest.mark.usefixtures("small_scenes")

FED = {
    "scenes": {"captions", "crops", "masked", "codes"},
    "synthetic": {"captions", "crops", "masked", "codes", "groups"},
    "flags": {"masked", "codes", "udon"},
}


def test_every_stream_feeds_its_objectives():
    config = joint()
    fields = dict(zip((s.name for s in config.data.streams), carried_fields(config, check_data(config)), strict=True))
    for name, expected in FED.items():
        assert {key for key, objective in config.objectives.items() if objective.needs <= fields[name]} == expected


def test_half_of_the_steps_are_labelled():
    weights = {stream.name: stream.weight for stream in joint().data.streams}
    scenes = weights.pop("scenes") + weights.pop("synthetic")
    assert scenes == pytest.approx(1 - LABELLED_SHARE) and sum(weights.values()) == pytest.approx(LABELLED_SHARE)


@pytest.fixture(scope="module")
def steps(small_scenes: None) -> dict[str, dict[str, float]]:
    late = joint()
    config = replace(
        late,
        objectives={name: replace(o, start=0, ramp=0) for name, o in late.objectives.items()},
        data=replace(late.data, hold_decoded_bytes=0),  # a few batches do not need every image decoded
    )
    tokenizer = make_tokenizer(config, catalog := check_data(config))
    batches: Iterator[Batch] = LocalFeed(feed_config(config, tokenizer, {})).batches(0, 60)
    state = TrainState(config, dimensions(config, catalog), torch.device("cpu"))
    names = [stream.name for stream in config.data.streams]
    reports: dict[str, dict[str, float]] = {}
    for batch in batches:
        name = names[batch.stream]
        if name in FED and name not in reports:
            report = train_step(state, [batch], [state.space.smallest], rank=0)
            reports[name] = {key: float(value) for key, value in report.items()}
        if reports.keys() == FED.keys():
            break
    return reports


@pytest.mark.parametrize("stream", FED)
def test_a_step_trains_what_its_stream_feeds(stream: str, steps: dict[str, dict[str, float]]):
    terms = {name.split("/")[0] for name in steps[stream] if name.endswith("/S") and not name.startswith("embedding/")}
    assert terms == FED[stream]
    assert all(value == value for value in steps[stream].values())


def test_generated_images_have_no_written_captions(steps: dict[str, dict[str, float]]):
    assert "captions/web/S" in steps["scenes"] and "captions/web/S" not in steps["synthetic"]
    assert "captions/synthetic/S" in steps["synthetic"]
