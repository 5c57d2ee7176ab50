from dataclasses import replace

import numpy as np
import pytest
import torch

from elastic.data.augment import AugmentConfig, augment, draw_views
from elastic.data.decode import decode_all
from elastic.data.sources import open_source
from elastic.errors import ConfigError
from elastic.model.config import Preprocess
from elastic.model.preprocess import to_model_input

STRONG = AugmentConfig(blur_probability=0.3, erase_probability=0.5)


@pytest.fixture(scope="module")
def canvases() -> torch.Tensor:
    found, broken = decode_all(open_source("icons").read_images(np.arange(0, 13_000, 1000)), 64)
    assert not broken.any()
    return torch.from_numpy(found)


def quiet(**changes: object) -> AugmentConfig:
    return replace(AugmentConfig.identity(), **changes)


def test_no_augmentation_is_the_evaluation_path(canvases: torch.Tensor):
    views = augment(canvases, 32, draw_views(AugmentConfig.identity(), len(canvases), seed=0))
    exact = to_model_input(canvases, Preprocess(image_size=32, mean=(0, 0, 0), std=(1, 1, 1))) * 255
    assert (views.float() - exact).abs().max() <= 0.51  # rounding to 8 bits


def test_the_same_seed_gives_the_same_views_and_another_seed_does_not(canvases: torch.Tensor):
    first, again, other = (augment(canvases, 32, draw_views(STRONG, len(canvases), seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_view_does_not_depend_on_who_shares_its_batch(canvases: torch.Tensor):
    views = draw_views(STRONG, 12, seed=3)
    whole = augment(canvases[:6], 32, views)
    halves = [augment(canvases[start : start + 3], 32, views.part(2 * start, 2 * start + 6)) for start in (0, 3)]
    assert torch.equal(whole, torch.cat(halves))


def test_views_of_one_image_are_adjacent(canvases: torch.Tensor):
    still = draw_views(AugmentConfig.identity(), 6, seed=0)
    views = augment(canvases[:2], 64, still)
    assert torch.equal(views[0], views[2])
    assert torch.equal(views[3], views[5])
    assert not torch.equal(views[2], views[3])


def test_a_flip_mirrors_the_image(canvases: torch.Tensor):
    flipped = augment(canvases, 64, draw_views(quiet(flip_probability=1.0), len(canvases), 0))
    straight = augment(canvases, 64, draw_views(quiet(), len(canvases), 0))
    assert (flipped.flip(3).int() - straight.int()).abs().max() <= 1


def test_without_colour_all_channels_are_equal(canvases: torch.Tensor):
    grey = augment(canvases, 32, draw_views(quiet(grey_probability=1.0), len(canvases), 0)).int()
    assert (grey[:, 0] - grey[:, 1]).abs().max() <= 1
    assert (grey[:, 0] - grey[:, 2]).abs().max() <= 1


def test_turning_the_hue_keeps_grey_grey():
    grey = torch.full((8, 4, 16, 16), 255, dtype=torch.uint8)
    grey[:, :3] = 90
    turned = augment(grey, 16, draw_views(quiet(hue_probability=1.0, hue_deg=180.0), 8, 0))
    assert (turned.int() - 90).abs().max() <= 1


def test_transparent_canvases_show_the_drawn_background():
    clear = torch.zeros(5, 4, 8, 8, dtype=torch.uint8)
    views = draw_views(quiet(background_probability=1.0), 5, seed=1)
    shown = augment(clear, 8, views).float()
    assert (shown - views.background[:, :, None, None]).abs().max() <= 0.51
    assert (augment(clear, 8, draw_views(quiet(), 5, seed=1)) == 255).all()


def test_brightness_and_contrast_follow_their_formula():
    canvas = torch.full((4, 4, 2, 2), 255, dtype=torch.uint8)
    canvas[:, :3] = torch.tensor([[100, 120], [140, 160]], dtype=torch.uint8)
    views = draw_views(quiet(brightness=0.2, contrast=0.4), 4, seed=5)
    found = augment(canvas, 2, views).float()
    for index in range(4):
        bright = canvas[index, :3].float() * views.gain[index]
        expected = (bright - bright.mean()) * views.contrast[index] + bright.mean()
        assert (found[index] - expected).abs().max() <= 0.51


def test_erased_views_hold_a_rectangle_of_one_colour():
    canvas = torch.full((20, 4, 32, 32), 255, dtype=torch.uint8)
    views = draw_views(quiet(erase_probability=1.0, erase_size=(0.3, 0.3)), 20, seed=0)
    erased = (augment(canvas, 32, views) != 255).any(dim=1)
    share = erased.float().mean(dim=(1, 2))
    # A corner may lie outside; a full square has a share of 0.09.
    assert (share > 0.015).all()
    assert (share < 0.11).all()


@pytest.mark.parametrize("field, value", [("scale", (1.2, 0.8)), ("flip_probability", 1.5), ("shift", -0.1)])
def test_impossible_settings_are_refused(field: str, value: object):
    with pytest.raises(ConfigError, match=f"augment.{field}"):
        AugmentConfig(**{field: value})
