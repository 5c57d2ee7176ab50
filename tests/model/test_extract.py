"""An extracted model equals the slice it was cut from, and owes nothing to the encoder."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch

from elastic.errors import CheckpointError, InvalidRequest
from elastic.model.config import Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.extract import extract, is_timm_config, save_timm, sliced_weights
from elastic.model.vit import forward_vit
from elastic.submodel import Space, Submodel

Build = Callable[[VisionConfig], Encoder]


def some_submodels(space: Space) -> Iterator[Submodel]:
    """Every granularity, a Mix'n'Match one, and one whose layers have no order."""
    yield from space.granularities.values()
    small, *_, large = space.ffn_dims
    yield Submodel((small,) * (space.depth - 1) + (large,))
    yield Submodel((large,) + (space.ffn_dims[1],) * (space.depth - 1))


def images_for(encoder: Encoder, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    size = encoder.config.vision.image_size
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_an_extracted_model_equals_its_slice(
    vision: VisionConfig, build_image_encoder: Build, dtype: torch.dtype, tolerance: float
):
    encoder = build_image_encoder(vision).to(dtype)
    images = images_for(encoder, dtype)
    with torch.no_grad():
        for submodel in some_submodels(encoder.space):
            sliced = forward_vit(encoder.image, images, submodel).embedding
            difference = (extract(encoder, submodel)(images) - sliced).abs().max()
            assert difference < tolerance * max(1.0, sliced.abs().max().item()), submodel


def test_an_extracted_model_shares_no_memory_with_the_encoder(encoder: Encoder):
    images = images_for(encoder)
    vit = extract(encoder, encoder.space.full)
    before = vit(images)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert torch.equal(vit(images), before)


def test_an_extracted_model_holds_only_what_it_uses(encoder: Encoder):
    weights = sliced_weights(encoder.image, encoder.space.smallest)
    assert weights["blocks.0.mlp.fc2.weight"].shape == (24, 12)
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in weights.values())


def test_a_submodel_that_was_not_trained_is_refused(encoder: Encoder):
    with pytest.raises(InvalidRequest, match="were not trained"):
        extract(encoder, Submodel((13, 13, 13)))


def test_a_uniform_submodel_loads_by_timms_own_local_dir(
    vision: VisionConfig, build_image_encoder: Build, tmp_path: Path
):
    encoder = build_image_encoder(vision)
    submodel = encoder.space.full if vision.pool == "map" else encoder.space.granularities["M"]
    assert is_timm_config(encoder, submodel)
    save_timm(encoder, submodel, Preprocess(image_size=vision.image_size), tmp_path / "out")
    vit = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = images_for(encoder)
    expected = forward_vit(encoder.image, images, submodel).embedding
    torch.testing.assert_close(vit(images), expected, rtol=1e-5, atol=1e-5)


def test_timm_cannot_describe_mixed_sizes_or_a_pooling_mlp_of_its_own(vision: VisionConfig, build_image_encoder: Build):
    encoder = build_image_encoder(vision)
    full, half = encoder.space.ffn_dims[-1], encoder.space.ffn_dims[-2]
    assert not is_timm_config(encoder, Submodel((half,) + (full,) * (vision.depth - 1)))
    assert is_timm_config(encoder, encoder.space.uniform(half)) == (vision.pool != "map")


def test_timm_is_told_how_to_preprocess(encoder: Encoder, tmp_path: Path):
    preprocess = Preprocess(image_size=16, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    save_timm(encoder, encoder.space.smallest, preprocess, tmp_path / "out")
    vit = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    config = timm.data.resolve_data_config(model=vit)
    assert config["input_size"] == (3, 16, 16)
    assert (tuple(config["mean"]), tuple(config["std"])) == (preprocess.mean, preprocess.std)


def test_the_folder_says_what_it_is_a_slice_of(encoder: Encoder, tmp_path: Path):
    save_timm(encoder, Submodel((12, 12, 96)), Preprocess(image_size=16), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["elastic"] == {"submodel": "ffn=12x2+96x1", "embed_dims": [4, 8]}


def test_an_existing_folder_is_never_overwritten(encoder: Encoder, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        save_timm(encoder, encoder.space.full, Preprocess(image_size=16), tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "precious"]


def test_a_failed_export_leaves_no_folder(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="disk full"):
        save_timm(encoder, encoder.space.full, Preprocess(image_size=16), tmp_path / "out")
    assert not (tmp_path / "out").exists()
