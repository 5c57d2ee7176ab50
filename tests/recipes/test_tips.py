"""TIPS on scenes: every objective is fed, and the first step has the values of an untrained model."""

import math

import pytest
import torch

from elastic.data.feed import LocalFeed
from elastic.recipes.tips import PROTOTYPES, tips, tips_v2
from elastic.train.config import TrainConfig
from elastic.train.preparation import check_data, dimensions, feed_config, make_tokenizer
from elastic.train.state import TrainState
from elastic.train.step import train_step

pytestmark = pytest.mark.usefixtures("small_scenes")


def first_step(config: TrainConfig) -> dict[str, float]:
    tokenizer = make_tokenizer(config, catalog := check_data(config))
    (batch,) = LocalFeed(feed_config(config, tokenizer, {})).batches(0, 1)
    state = TrainState(config, dimensions(config, catalog), torch.device("cpu"))
    report = train_step(state, [batch], [state.space.full], rank=0)
    return {name: float(value) for name, value in report.items()}


@pytest.mark.parametrize("recipe", [tips, tips_v2])
def test_losses_start_at_those_of_chance(recipe):
    report = first_step(recipe())
    batch, prototypes = math.log(64), math.log(PROTOTYPES.count)
    # Half of ln(batch) for each kind of caption, and what cosines of untrained embeddings vary by over 0.07.
    for name in ("web", "synthetic"):
        assert batch / 2 - 0.1 < report[f"captions/{name}/XL"] < batch / 2 + 1
    # Targets in equal use are far from what an untrained student says.
    for name in ("crops/crops", "masked/patches"):
        assert prototypes - 0.5 < report[f"{name}/XL"] < prototypes + 1.5
    assert min(report[f"{name}/collapse@use/XL"] for name in ("crops", "masked")) > 0.9


def test_captions_speak_of_places_so_nothing_is_mirrored():
    (stream,) = tips().data.streams
    assert stream.augment.flip_probability == stream.local_crops.augment.flip_probability == 0


def test_hidden_patches_weigh_twice_as_much_as_crops():
    crops, masked = (tips().objectives[name].weight for name in ("crops", "masked"))
    assert masked == 2 * crops
    assert tips().masking.ratio == 0.75


def test_the_second_version_has_no_teacher_of_its_own_and_counts_every_patch():
    assert tips_v2().teacher == "student" and tips_v2().objectives["masked"].every_patch
