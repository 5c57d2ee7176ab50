"""TIPS on scenes: every objective is fed, and the first step has the values of an untrained model."""

import math
from dataclasses import replace

import pytest
import torch

from elastic.data.feed import LocalFeed
from elastic.recipes.tips import PROTOTYPES, tips, tips_v2
from elastic.train.config import TrainConfig
from elastic.train.preparation import check_data, dimensions, feed_config, make_tokenizer
from elastic.train.state import TrainState
from elastic.train.step import train_step


def first_step(config: TrainConfig) -> dict[str, float]:
    tokenizer = make_tokenizer(config, catalog := check_data(config))
    (batch,) = LocalFeed(feed_config(config, tokenizer, {})).batches(0, 1)
    state = TrainState(config, dimensions(config, catalog), torch.device("cpu"))
    report = train_step(state, [batch], [state.space.full], rank=0)
    return {name: float(value) for name, value in report.items()}


@pytest.mark.parametrize("recipe", [tips, tips_v2])
def test_losses_start_at_those_of_chance(recipe):
    config = recipe()
    early = {name: replace(objective, start=0, ramp=0) for name, objective in config.objectives.items()}
    report = first_step(replace(config, objectives=early))
    batch, prototypes = math.log(64), math.log(PROTOTYPES.count)
    # Half of ln(batch) for each kind of caption, and what cosines of untrained embeddings vary by over 0.07.
    for name in ("web", "synthetic"):
        assert batch / 2 - 0.1 < report[f"captions/{name}/XL"] < batch / 2 + 1
    # An untrained class token looks alike in all images, so crops agree with their targets from the start; patches
    # differ by their place.
    assert 0 < report["crops/crops/XL"] < prototypes + 1
    assert prototypes - 0.5 < report["masked/patches/XL"] < prototypes + 1.5
    assert report["masked/collapse@use/XL"] > 0.5


def test_captions_speak_of_places_so_nothing_is_mirrored():
    (stream,) = tips().data.streams
    assert stream.augment.flip_probability == stream.local_crops.augment.flip_probability == 0


def test_weights_are_the_papers():
    assert [objective.weight for objective in tips().objectives.values()] == [1, 1, 2]
    assert tips().masking.ratio == 0.75


def test_the_second_version_has_no_teacher_of_its_own_and_counts_every_patch():
    assert tips_v2().teacher == "student" and tips_v2().objectives["masked"].every_patch


@pytest.mark.parametrize("recipe", [tips, tips_v2])
def test_captions_come_first(recipe):
    starts = {name: objective.start for name, objective in recipe().objectives.items()}
    assert starts == {"captions": 0, "crops": 0.2, "masked": 0.2}
