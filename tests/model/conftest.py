"""Encoders small enough that every test runs in milliseconds, one for each kind of timm model that can be nested."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from elastic.batch import Batch, Captions
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.model.encoder import Encoder

SMALL = {"width": 24, "depth": 2, "num_heads": 3}
VISIONS = {
    "class_token": VisionConfig(image_size=16, patch_size=8, pool="token", width=24, depth=3, num_heads=3),
    "mean": VisionConfig(image_size=16, patch_size=8, num_cls_tokens=0, **SMALL),
    "two_class_tokens": VisionConfig(image_size=16, patch_size=8, num_cls_tokens=2, pool="token", **SMALL),
    "hybrid": VisionConfig(timm_name="vit_tiny_r_s16_p8_224", image_size=16, patch_size=2, num_cls_tokens=0, **SMALL),
    "layer_scale_and_registers": VisionConfig(
        timm_name="vit_small_patch14_reg4_dinov2", image_size=28, patch_size=14, num_registers=4, pool="token", **SMALL
    ),
    "packed_swiglu": VisionConfig(
        timm_name="vit_giant_patch14_dinov2", image_size=28, patch_size=14, mlp_ratio=16 / 3, pool="token", **SMALL
    ),
    "split_swiglu": VisionConfig(
        timm_name="aimv2_large_patch14_224", image_size=28, patch_size=14, num_cls_tokens=0, **SMALL
    ),
    "attention_pool": VisionConfig(
        timm_name="vit_base_patch16_siglip_224", image_size=32, num_cls_tokens=0, pool="map", **SMALL
    ),
    "post_norm": VisionConfig(timm_name="vit_base_patch16_rpn_224", image_size=32, num_cls_tokens=0, **SMALL),
}


def randomise(module: nn.Module) -> None:
    """Give every parameter values of its own, so that no branch hides behind zeros or ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + 0.05)


def build(vision: VisionConfig, text: TextConfig | None = None) -> Encoder:
    encoder = Encoder(EncoderConfig(vision=vision, text=text, embed_dims=(4, 8)))
    randomise(encoder)
    return encoder.eval()


@pytest.fixture(params=VISIONS)
def vision(request: pytest.FixtureRequest) -> VisionConfig:
    """Each kind of image tower in turn."""
    return VISIONS[request.param]


@pytest.fixture
def encoder() -> Encoder:
    """Three blocks of width 24 with a text tower of two."""
    text = TextConfig(vocab_size=50, max_tokens=8, width=16, depth=2, num_heads=2)
    return build(VISIONS["class_token"], text)


@pytest.fixture
def build_image_encoder() -> Callable[[VisionConfig], Encoder]:
    """Builds an encoder without a text tower, every parameter random."""
    return build


@pytest.fixture
def batch() -> Batch:
    """Four images for `encoder`, two captions."""
    generator = torch.Generator().manual_seed(1)
    return Batch(
        images=torch.randn(4, 3, 16, 16, generator=generator),
        row_ids=torch.arange(4),
        domains=torch.zeros(4, dtype=torch.int64),
        captions=Captions(
            tokens=torch.tensor([[3, 4, 5], [6, 7, 0]]),
            mask=torch.tensor([[True, True, True], [True, True, False]]),
            index=torch.tensor([0, 0, 1, 1]),
        ),
    )
