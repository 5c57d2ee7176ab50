import pytest
import torch

from elastic.errors import ConfigError
from elastic.train.masking import MaskConfig, draw_masks


@pytest.mark.parametrize(("ratio", "count"), [(0.75, 192), (0.5, 128), (0.001, 1), (0.999, 255)])
def test_every_image_hides_as_many_patches(ratio: float, count: int):
    masks = draw_masks(MaskConfig(ratio=ratio), 3, 256, seed=0)  # 256 patches and 192 hidden: TIPS at 224 px
    assert masks.sum(dim=1).tolist() == [count] * 3


def test_images_and_seeds_differ_and_a_seed_repeats():
    first, again, other = (draw_masks(MaskConfig(), 8, 16, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({tuple(row.tolist()) for row in first}) > 1


def test_every_patch_is_hidden_equally_often():
    masks = draw_masks(MaskConfig(ratio=0.25), 4000, 16, seed=3)
    assert (masks.float().mean(dim=0) - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_hiding_nothing_or_everything_is_refused(ratio: float):
    with pytest.raises(ConfigError, match="between 0 and 1"):
        MaskConfig(ratio=ratio)
