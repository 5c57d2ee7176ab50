"""Any timm checkpoint becomes the full submodel of an encoder; nothing that did not load is passed over."""

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import save_for_hf
from torch import nn

from elastic.errors import CheckpointError
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.pretrained import build_encoder, load_timm_checkpoint
from elastic.model.vit import forward_vit

NAME = "vit_tiny_patch16_224"
SIZES = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3}
VISION = VisionConfig(timm_name=NAME, image_size=32, width=24, depth=2, num_heads=3, pool="token")


@pytest.fixture
def plain() -> nn.Module:
    """A timm model as someone else trained it, with a classifier of eight classes."""
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=8, **SIZES).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def saved_as(kind: str, model: nn.Module, folder: Path) -> str:
    if kind == "pth":
        torch.save({"state_dict": model.state_dict(), "epoch": 3}, folder / "model_best.pth")
        return str(folder / "model_best.pth")
    if kind == "safetensors":
        safetensors.torch.save_file(model.state_dict(), folder / "weights.safetensors")
        return str(folder / "weights.safetensors")
    save_for_hf(model, str(folder / "saved"), safe_serialization=True)
    return f"local-dir:{folder / 'saved'}" if kind == "local-dir" else str(folder / "saved")


@pytest.mark.parametrize("kind", ["pth", "safetensors", "folder", "local-dir"])
def test_the_full_submodel_equals_the_plain_timm_model(
    kind: str, plain: nn.Module, images: torch.Tensor, tmp_path: Path
):
    vision = replace(VISION, checkpoint=saved_as(kind, plain, tmp_path))
    encoder = build_encoder(EncoderConfig(vision=vision, embed_dims=(4, 8))).eval()
    found = forward_vit(encoder.image, images, encoder.space.full).embedding
    torch.testing.assert_close(found, plain(images), rtol=0, atol=1e-6)


def test_its_feed_forward_blocks_are_then_nested(plain: nn.Module, images: torch.Tensor, tmp_path: Path):
    vision = replace(VISION, checkpoint=saved_as("pth", plain, tmp_path))
    encoder = build_encoder(EncoderConfig(vision=vision, embed_dims=(4, 8))).eval()
    half = forward_vit(encoder.image, images, encoder.space.granularities["L"]).embedding
    with torch.no_grad():
        for block in plain.blocks:
            block.mlp.fc2.weight[:, 48:] = 0
    torch.testing.assert_close(half, plain(images), rtol=0, atol=1e-6)


def test_a_head_of_another_size_stays_fresh_and_is_reported(plain: nn.Module, tmp_path: Path):
    vit = VISION.create(16)
    head = vit.head.weight.clone()
    report = load_timm_checkpoint(vit, saved_as("pth", plain, tmp_path))
    assert report.fresh == ("head.bias", "head.weight")
    assert torch.equal(vit.head.weight, head)
    assert torch.equal(vit.blocks[1].attn.qkv.weight, plain.blocks[1].attn.qkv.weight)


def test_a_second_class_token_stays_fresh_and_is_reported(plain: nn.Module, tmp_path: Path):
    vit = replace(VISION, num_cls_tokens=2).create(8)
    token, positions = vit.reg_token.clone(), vit.pos_embed.clone()
    report = load_timm_checkpoint(vit, saved_as("pth", plain, tmp_path))
    assert report.fresh == ("reg_token",)
    assert torch.equal(vit.reg_token, token)
    assert torch.equal(vit.pos_embed[:, 0], plain.pos_embed[:, 0])
    assert torch.equal(vit.pos_embed[:, 1], positions[:, 1])
    assert torch.equal(vit.pos_embed[:, 2:], plain.pos_embed[:, 1:])


def test_class_tokens_are_put_before_the_patches_of_a_tower_that_had_none(tmp_path: Path):
    averaged = replace(VISION, num_cls_tokens=0, pool="avg").create(8)
    torch.nn.init.normal_(averaged.fc_norm.weight)
    vit = replace(VISION, num_cls_tokens=2, image_size=64).create(8)
    report = load_timm_checkpoint(vit, saved_as("pth", averaged, tmp_path))
    assert report.fresh == ("cls_token", "reg_token")
    assert torch.equal(vit.norm.weight, averaged.fc_norm.weight)
    assert vit.pos_embed.shape == (1, 2 + 16, 24)
    resampled = resample_abs_pos_embed(averaged.pos_embed, [4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(vit.pos_embed[:, 2:], resampled)


def test_the_image_tower_of_an_earlier_run_is_taken_with_its_head(images: torch.Tensor, tmp_path: Path):
    config = EncoderConfig(vision=VISION, text=TextConfig(width=16, depth=1, vocab_size=32), embed_dims=(4, 8))
    earlier = Encoder(config).eval()
    safetensors.torch.save_file(earlier.state_dict(), tmp_path / "model.safetensors")
    later = build_encoder(replace(config, vision=replace(VISION, checkpoint=str(tmp_path)))).eval()
    assert later.text is not None and earlier.text is not None
    small = earlier.space.granularities["S"]
    assert torch.equal(
        forward_vit(later.image, images, small).embedding, forward_vit(earlier.image, images, small).embedding
    )
    assert not torch.equal(later.text.state_dict()["head.weight"], earlier.text.state_dict()["head.weight"])


def test_positions_are_resampled_to_another_image_size(plain: nn.Module, tmp_path: Path):
    vit = replace(VISION, image_size=64).create(8)
    assert load_timm_checkpoint(vit, saved_as("pth", plain, tmp_path)).fresh == ()
    assert vit.pos_embed is not None and vit.pos_embed.shape == (1, 17, 24)
    assert torch.equal(vit.pos_embed[:, 0], plain.pos_embed[:, 0])


@pytest.mark.parametrize(("field", "value"), [("depth", 3), ("depth", 1), ("width", 12), ("num_cls_tokens", 0)])
def test_a_checkpoint_of_other_sizes_is_refused(field: str, value: int, plain: nn.Module, tmp_path: Path):
    changes = {field: value} | ({"pool": "avg"} if value == 0 else {})
    vit = replace(VISION, **changes).create(8)
    with pytest.raises(CheckpointError, match=r"does not fit the model .* VisionConfig.from_timm"):
        load_timm_checkpoint(vit, saved_as("pth", plain, tmp_path))


def test_a_refused_checkpoint_changes_nothing(plain: nn.Module, tmp_path: Path):
    vit = replace(VISION, depth=3).create(8)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_timm_checkpoint(vit, saved_as("pth", plain, tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_an_unreadable_file_is_refused(name: str, content: bytes, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_timm_checkpoint(VISION.create(8), str(tmp_path / name))


def test_a_missing_file_or_folder_is_refused(tmp_path: Path):
    for location in (str(tmp_path / "none.pth"), f"local-dir:{tmp_path / 'none'}", str(tmp_path)):
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_timm_checkpoint(VISION.create(8), location)
