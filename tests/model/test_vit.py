"""The image tower is timm's model with the FFN sizes as an argument."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F

from elastic.model.config import VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.vit import Mask, _with_positions, embed_second, forward_tokens, forward_vit, patch_pixels
from elastic.submodel import Submodel

Build = Callable[[VisionConfig], Encoder]


def images_for(encoder: Encoder, count: int = 2) -> torch.Tensor:
    size = encoder.config.vision.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def test_the_full_submodel_equals_plain_timm(vision: VisionConfig, build_image_encoder: Build):
    encoder = build_image_encoder(vision)
    images = images_for(encoder)
    features = forward_vit(encoder.image, images, encoder.space.full)
    torch.testing.assert_close(features.embedding, encoder.image(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        forward_tokens(encoder.image, images, encoder.space.full), encoder.image.forward_features(images)
    )


def test_smaller_submodels_differ_from_each_other(vision: VisionConfig, build_image_encoder: Build):
    encoder = build_image_encoder(vision)
    images = images_for(encoder)
    outputs = [forward_vit(encoder.image, images, s).embedding for s in encoder.space.granularities.values()]
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == 4


def test_patch_tokens_exclude_class_and_register_tokens(vision: VisionConfig, build_image_encoder: Build):
    encoder = build_image_encoder(vision)
    features = forward_vit(encoder.image, images_for(encoder), encoder.space.full)
    assert features.patch_tokens.shape == (2, vision.shape.num_patches, 24)
    assert features.cls_token.shape == (2, 24)


def test_the_second_class_token_is_timms_first_register(build_image_encoder: Build):
    encoder = build_image_encoder(
        VisionConfig(image_size=16, patch_size=8, width=24, num_heads=3, depth=1, num_cls_tokens=2)
    )
    images = images_for(encoder)
    tokens = forward_tokens(encoder.image, images, encoder.space.full)
    second = forward_vit(encoder.image, images, encoder.space.full).second_cls_token
    assert encoder.image.reg_token is not None and encoder.image.reg_token.shape == (1, 1, 24)
    assert second is not None and torch.equal(second, tokens[:, 1])


def test_a_model_without_registers_has_no_second_class_token(build_image_encoder: Build):
    encoder = build_image_encoder(VisionConfig(image_size=16, patch_size=8, width=24, num_heads=3, depth=1))
    assert forward_vit(encoder.image, images_for(encoder), encoder.space.full).second_cls_token is None


def test_hidden_units_beyond_the_width_get_exactly_zero_gradient(encoder: Encoder):
    submodel = Submodel((12, 24, 48))
    forward_vit(encoder.image, images_for(encoder), submodel).embedding.square().sum().backward()
    for block, ffn_dim in zip(encoder.image.blocks, submodel.ffn_dims, strict=True):
        grads = [block.mlp.fc1.weight.grad, block.mlp.fc1.bias.grad, block.mlp.fc2.weight.grad.T]
        assert all((grad[ffn_dim:] == 0).all() and (grad[:ffn_dim] != 0).any() for grad in grads)
        assert (block.mlp.fc2.bias.grad != 0).all()


def test_threads_run_different_submodels_of_one_model_at_once(encoder: Encoder):
    images = images_for(encoder, 8)
    submodels = list(encoder.space.mixes())
    with torch.no_grad():
        expected = [forward_vit(encoder.image, images, s).embedding for s in submodels]
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(lambda s: torch.no_grad()(forward_vit)(encoder.image, images, s).embedding, submodels * 4)
    for number, embedding in enumerate(found):
        torch.testing.assert_close(embedding, expected[number % len(submodels)])


def test_an_image_gets_the_same_embedding_in_any_batch(encoder: Encoder):
    images = images_for(encoder, 8)
    for submodel in encoder.space.granularities.values():
        together = encoder.encode_images(images, submodel, 8)
        alone = torch.cat([encoder.encode_images(image[None], submodel, 8) for image in images])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_a_submodel_of_another_depth_is_a_programming_error(encoder: Encoder):
    with pytest.raises(AssertionError, match="for 3 blocks"):
        forward_vit(encoder.image, images_for(encoder), Submodel((12, 12)))


def test_a_mask_of_nothing_changes_nothing(build_image_encoder, vision):
    encoder = build_image_encoder(vision)
    images = torch.randn(2, 3, vision.image_size, vision.image_size)
    nothing = Mask(torch.zeros(2, vision.shape.num_patches, dtype=torch.bool), torch.ones(vision.width))
    plain = forward_vit(encoder.image, images, encoder.space.full)
    masked = forward_vit(encoder.image, images, encoder.space.full, nothing)
    torch.testing.assert_close(masked.patch_tokens, plain.patch_tokens)
    torch.testing.assert_close(masked.embedding, plain.embedding)


def test_hidden_pixels_reach_nothing(build_image_encoder, vision):
    encoder = build_image_encoder(vision)
    images = torch.randn(2, 3, vision.image_size, vision.image_size)
    hidden = torch.arange(2 * vision.shape.num_patches).view(2, -1) % 2 == 0
    mask = Mask(hidden, torch.zeros(vision.width))
    side = vision.image_size // round(vision.shape.num_patches**0.5)
    pixels = hidden.view(2, 1, vision.image_size // side, -1).repeat_interleave(side, 2).repeat_interleave(side, 3)
    others = torch.where(pixels, torch.randn_like(images), images)
    first, second = (forward_vit(encoder.image, shown, encoder.space.full, mask) for shown in (images, others))
    assert torch.equal(first.patch_tokens, second.patch_tokens)


def test_a_hidden_patch_keeps_its_position(build_image_encoder):
    encoder = build_image_encoder(VisionConfig(image_size=16, patch_size=8, width=24, num_heads=3, depth=1))
    everything = Mask(torch.ones(1, 4, dtype=torch.bool), torch.zeros(24))
    tokens = forward_vit(encoder.image, torch.randn(1, 3, 16, 16), encoder.space.full, everything).patch_tokens[0]
    assert (tokens[0] - tokens[1]).abs().max() > 1e-4


def test_a_smaller_crop_has_fewer_patches_on_resampled_positions(build_image_encoder):
    encoder = build_image_encoder(VisionConfig(image_size=224, patch_size=14, width=24, num_heads=3, depth=1))
    crop = torch.randn(1, 3, 98, 98)
    assert forward_vit(encoder.image, crop, encoder.space.full).patch_tokens.shape[1] == 49  # TIPS: 7 x 7
    grid = encoder.image.pos_embed[:, 1:].view(1, 16, 16, 24).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(7, 7), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
    embedded = encoder.image.patch_embed(crop) + expected
    found = _with_positions(encoder.image, encoder.image.patch_embed(crop), (7, 7))
    torch.testing.assert_close(found[:, 1:], embedded)


def test_the_second_class_token_goes_through_the_same_head(build_image_encoder):
    vision = VisionConfig(image_size=16, patch_size=8, width=24, num_heads=3, depth=1, num_cls_tokens=2, pool="token")
    encoder = build_image_encoder(vision)
    plain = forward_vit(encoder.image, torch.randn(2, 3, 16, 16), encoder.space.full)
    features = embed_second(encoder.image, plain)
    assert plain.second_embedding is None
    torch.testing.assert_close(features.second_embedding, encoder.image.head(features.second_cls_token))
    assert not torch.allclose(features.second_embedding, features.embedding)


def test_patch_pixels_are_in_the_order_of_patch_tokens():
    images = torch.arange(16.0).view(1, 1, 4, 4)
    assert patch_pixels(images, 4)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
