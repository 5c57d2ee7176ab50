"""An exported folder works in a process that has no `elastic`."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from elastic.model import standalone
from elastic.model.config import Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.extract import save_timm
from elastic.model.vit import forward_vit
from elastic.submodel import Submodel

WITHOUT_ELASTIC = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "elastic":
            raise ImportError("elastic is not installed here")
sys.meta_path.insert(0, Refuse())
try:
    import elastic
except ImportError:
    pass
else:
    raise SystemExit("elastic could be imported")
import safetensors.torch, timm, torch
images = safetensors.torch.load_file("images.safetensors")["images"]
from load import load_model
found = {"by_load": load_model()(images)}
if sys.argv[1] == "uniform":
    found["by_timm"] = timm.create_model("local-dir:.", pretrained=True).eval()(images)
safetensors.torch.save_file({k: v.detach() for k, v in found.items()}, "found.safetensors")
"""


@pytest.mark.parametrize(("kind", "ffn_dims"), [("uniform", (24, 24, 24)), ("mixed", (12, 48, 96))])
def test_a_process_without_elastic_computes_the_slice(
    encoder: Encoder, tmp_path: Path, kind: str, ffn_dims: tuple[int, ...]
):
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    folder = tmp_path / "out"
    save_timm(encoder, Submodel(ffn_dims), Preprocess(image_size=16), folder)
    safetensors.torch.save_file({"images": images}, folder / "images.safetensors")
    subprocess.run([sys.executable, "-c", WITHOUT_ELASTIC, kind], cwd=folder, check=True, timeout=280)
    found = safetensors.torch.load_file(folder / "found.safetensors")
    expected = forward_vit(encoder.image, images, Submodel(ffn_dims)).embedding
    assert set(found) == ({"by_load", "by_timm"} if kind == "uniform" else {"by_load"})
    for embedding in found.values():
        torch.testing.assert_close(embedding, expected, rtol=1e-5, atol=1e-5)


def test_every_kind_of_tower_loads_at_mixed_sizes(
    vision: VisionConfig, build_image_encoder: Callable[[VisionConfig], Encoder], tmp_path: Path
):
    encoder = build_image_encoder(vision)
    dims = encoder.space.ffn_dims
    submodel = Submodel((dims[0],) * (vision.depth - 1) + (dims[2],))
    save_timm(encoder, submodel, Preprocess(image_size=vision.image_size), tmp_path / "out")
    images = torch.randn(1, 3, vision.image_size, vision.image_size)
    found = standalone.load_model(tmp_path / "out")(images)
    expected = forward_vit(encoder.image, images, submodel).embedding
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_layers_that_already_fit_are_kept(encoder: Encoder):
    layers = {name: id(layer) for name, layer in encoder.image.named_modules()}
    standalone.fit_linear_sizes(encoder.image, encoder.image.state_dict())
    assert {name: id(layer) for name, layer in encoder.image.named_modules()} == layers
