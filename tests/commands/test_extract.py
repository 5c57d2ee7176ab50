"""`elastic extract RUN OUT --submodel ...`."""

from pathlib import Path

import pytest
import torch

from elastic.checkpoint import Manifest, load_model, save_model
from elastic.cli import main
from elastic.model import standalone
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.vit import forward_vit
from elastic.submodel import Submodel


@pytest.fixture
def run(tmp_path: Path) -> Path:
    vision = VisionConfig(image_size=16, patch_size=8, width=24, depth=2, num_heads=3)
    encoder = Encoder(EncoderConfig(vision=vision, embed_dims=(4, 8)))
    save_model(tmp_path / "run", encoder, Manifest(encoder=encoder.config, preprocess=Preprocess(image_size=16)))
    return tmp_path / "run"


@pytest.mark.parametrize(("text", "ffn_dims"), [("S", (12, 12)), ("XL", (96, 96)), ("ffn=12x1+48x1", (12, 48))])
def test_the_written_model_equals_the_slice(run: Path, text: str, ffn_dims: tuple[int, ...]):
    out = run.parent / "out"
    assert main(["extract", str(run), "--submodel", text, str(out)]) == 0
    images = torch.randn(2, 3, 16, 16)
    expected = forward_vit(load_model(run)[0].image, images, Submodel(ffn_dims)).embedding
    torch.testing.assert_close(standalone.load_model(out)(images), expected, rtol=1e-5, atol=1e-5)


def test_it_says_what_it_wrote_and_how_to_load_it(run: Path, capsys: pytest.CaptureFixture[str]):
    main(["extract", str(run), str(run.parent / "out"), "--submodel", "S"])
    said = capsys.readouterr().out
    assert "S (ffn=12x2)" in said and "from load import load_model" in said


@pytest.mark.parametrize("text", ["XXL", "ffn=13x2", "ffn=12x3"])
def test_a_submodel_outside_the_space_is_a_user_error(run: Path, text: str, capsys: pytest.CaptureFixture[str]):
    assert main(["extract", str(run), str(run.parent / "out"), "--submodel", text]) == 2
    assert "submodel" in capsys.readouterr().err and not (run.parent / "out").exists()


def test_a_run_that_is_none_is_a_user_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["extract", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "holds no finished model" in capsys.readouterr().err
