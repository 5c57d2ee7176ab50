"""A configuration rebuilds its model exactly, from plain values."""

import json
import math

import pytest
import timm
import torch

from elastic.errors import ConfigError
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig, exact_mlp_ratio
from elastic.submodel import Space


def test_timm_rebuilds_the_tower_from_json_values(vision: VisionConfig):
    arguments = json.loads(json.dumps(vision.timm_kwargs(8)))
    expected, found = vision.create(8).state_dict(), timm.create_model(vision.timm_name, **arguments).state_dict()
    assert {name: p.shape for name, p in found.items()} == {name: p.shape for name, p in expected.items()}


def test_the_shape_is_that_of_the_built_model(vision: VisionConfig):
    vit, shape = vision.create(8), vision.shape
    images = torch.zeros(1, 3, vision.image_size, vision.image_size)
    assert vit.forward_features(images).shape == (1, shape.num_prefix_tokens + shape.num_patches, shape.width)
    assert (shape.depth, shape.num_heads) == (len(vit.blocks), 3)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_small_patch16_224", (384, 12, 1536, 6, 196, 1)),
        ("vit_small_patch14_reg4_dinov2", (384, 12, 1536, 6, 1369, 5)),
        ("vit_tiny_r_s16_p8_224", (192, 12, 768, 3, 49, 1)),
        ("vit_base_patch16_siglip_224", (768, 12, 3072, 12, 196, 0)),
    ],
)
def test_from_timm_takes_a_models_own_sizes(name: str, sizes: tuple[int, ...]):
    shape = VisionConfig.from_timm(name).shape
    found = (shape.width, shape.depth, shape.ffn_dim, shape.num_heads, shape.num_patches, shape.num_prefix_tokens)
    assert found == sizes


def test_from_timm_builds_the_same_parameters_as_timm():
    for name in ("vit_tiny_patch16_224", "aimv2_large_patch14_224"):
        with torch.device("meta"):
            expected, found = timm.create_model(name, num_classes=8), VisionConfig.from_timm(name).create(8)
        assert {n: p.shape for n, p in found.named_parameters()} == {n: p.shape for n, p in expected.named_parameters()}


def test_from_timm_takes_another_image_size():
    assert VisionConfig.from_timm("vit_small_patch16_224", image_size=64).shape.num_patches == 16


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("resnet18", "is a ResNet, not a timm VisionTransformer"),
        ("vit_no_such_model", "timm cannot build it"),
        ("vit_base_patch16_xp_224", "only timm's Block and ResPostBlock"),
    ],
)
def test_models_that_cannot_be_nested_are_refused(name: str, reason: str):
    with pytest.raises(ConfigError, match=reason):
        VisionConfig.from_timm(name)


@pytest.mark.parametrize("hidden", [97, 513, 4096, 8192])
@pytest.mark.parametrize("width", [24, 160, 192, 1408, 1536])
def test_the_exact_ratio_gives_back_the_hidden_size(hidden: int, width: int):
    assert int(width * exact_mlp_ratio(hidden, width)) == hidden


def test_spaces_follow_from_the_fractions():
    config = EncoderConfig(
        vision=VisionConfig(width=160, depth=5, num_heads=5), text=TextConfig(), embed_dims=(16, 128)
    )
    assert config.space == Space(5, (80, 160, 320, 640), (16, 128))
    assert config.text_space == Space(2, (64, 128, 256, 512), (16, 128))
    assert config.embed_dim == 128


def test_an_encoder_without_text_has_no_text_space():
    assert EncoderConfig().text_space is None


@pytest.mark.parametrize("fractions", [(), (0.5,), (0.0, 1.0)])
def test_fractions_must_end_with_the_whole(fractions: tuple[float, ...]):
    with pytest.raises(ConfigError, match="end with 1"):
        EncoderConfig(ffn_fractions=fractions)


def test_fractions_must_give_whole_sizes():
    with pytest.raises(ConfigError, match="whole sizes of FFN width 768"):
        _ = EncoderConfig(ffn_fractions=(1 / math.pi, 1.0)).space


@pytest.mark.parametrize(
    ("wrong", "rule"),
    [
        ({"num_heads": 5}, "must divide width 192"),
        ({"pool": "token", "num_cls_tokens": 0}, "needs num_cls_tokens"),
        ({"drop_path": 1.0}, "drop_path < 1"),
    ],
)
def test_contradictions_are_refused(wrong: dict, rule: str):
    with pytest.raises(ConfigError, match=rule):
        VisionConfig(**wrong)
