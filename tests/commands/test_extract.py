"""`elastic extract RUN OUT --submodel ...`."""

import json
import pathlib
import re
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models

import elastic.lm.checkpoint
from elastic.checkpoint import Manifest, load_model, save_model
from elastic.cli import main
from elastic.lm.checkpoint import LmManifest, load_matlm, save_matlm
from elastic.model import standalone
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.decoder import Decoder, DecoderConfig
from elastic.model.encoder import Encoder
from elastic.model.vit import forward_vit
from elastic.submodel import Submodel

LM = DecoderConfig(
    vocab_size=20, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dims=(8, 16, 32, 64), max_tokens=32
)


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


@pytest.fixture
def lm_run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    decoder, words = Decoder(LM), {f"w{index}": index for index in range(LM.vocab_size)}
    manifest = LmManifest(decoder=LM, tables={"latency": "l.parquet"}, provenance={"step": 7})
    save_matlm(tmp_path / "lm", decoder, manifest, Tokenizer(models.WordLevel(words, unk_token="w0")), {"surprise": 1})
    return tmp_path / "lm"


@pytest.mark.parametrize("text", ["S", "XL", "ffn=8x1+32x1"])
def test_a_language_models_submodel_is_a_run_that_computes_the_same(lm_run: Path, text: str):
    out, tokens = lm_run.parent / "out", torch.arange(10)[None]
    assert main(["extract", str(lm_run), str(out), "--submodel", text]) == 0
    (whole, _, _), (part, manifest, _) = load_matlm(lm_run), load_matlm(out)
    submodel = whole.space.parse(text)
    with torch.no_grad():
        expected = whole(tokens, submodel)
        torch.testing.assert_close(part(tokens, part.space.full), expected, rtol=0, atol=1e-5)
    assert manifest.tables == {} and manifest.provenance == {"step": 7, "extracted": str(submodel)}
    assert json.loads((out / "tokenizer_config.json").read_text())["surprise"] == 1
    assert (out / "config.json").exists() == submodel.is_uniform  # Llama knows one size only


def test_how_to_load_a_language_models_submodel_is_said_and_works(lm_run: Path, capsys: pytest.CaptureFixture[str]):
    main(["extract", str(lm_run), str(lm_run.parent / "out"), "--submodel", "S"])
    main(["extract", str(lm_run), str(lm_run.parent / "mixed"), "--submodel", "ffn=8x1+16x1"])
    hints = re.findall("load it: (.*)", capsys.readouterr().out)
    found = [eval(hint, {"transformers": transformers, "elastic": elastic, "pathlib": pathlib}) for hint in hints]
    assert found[0].config.intermediate_size == 8 and found[1][0].config.full_ffn_dims == (8, 16)


def test_a_language_models_submodel_overwrites_nothing(lm_run: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["extract", str(lm_run), str(lm_run), "--submodel", "S"]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
