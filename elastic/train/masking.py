"""Which patches the masked pass hides."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from elastic.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskConfig:
    """A random choice of the same number of patches in every image (TIPS found blocks to make no difference)."""

    ratio: float = 0.75
    """Share of an image's patches that are hidden (TIPS: 0.75; SynCLR and supervised MIM: 0.5)."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ConfigError("masking.ratio", self.ratio, "must be between 0 and 1, both excluded")


def draw_masks(config: MaskConfig, num_images: int, num_patches: int, seed: int) -> Bool[Tensor, "images patches"]:
    """True where a patch is hidden; a pure function of its arguments. At least one patch is hidden and one is not."""
    count = min(max(1, round(config.ratio * num_patches)), num_patches - 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(num_images, num_patches, generator=generator).argsort(dim=1)
    return torch.zeros(num_images, num_patches, dtype=torch.bool).scatter_(1, order[:, :count], True)
