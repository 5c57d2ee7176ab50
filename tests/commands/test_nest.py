"""`elastic nest CHECKPOINT OUT`: a Llama checkpoint becomes a run whose full model it is."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from elastic.cli import main
from elastic.commands.nest import calibration_blocks
from elastic.errors import DataError
from elastic.lm.checkpoint import load_matlm
from elastic.model.decoder import Decoder, DecoderConfig
from elastic.model.llama import CONFIG, llama_config, llama_weights
from elastic.model.storage import write_json, write_weights

SMALL = DecoderConfig(
    vocab_size=20, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dims=(64,), max_tokens=32
)


@pytest.fixture
def tokenizer() -> Tokenizer:
    engine = Tokenizer(models.WordLevel({f"w{index}": index for index in range(20)}, unk_token="w0"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return engine


@pytest.fixture
def llama(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    torch.manual_seed(0)
    decoder, folder = Decoder(SMALL), tmp_path / "llama"
    folder.mkdir()
    write_weights(folder / "model.safetensors", llama_weights(decoder))
    write_json(folder / CONFIG, llama_config(SMALL, torch.float32, (5,)))
    write_json(folder / "tokenizer_config.json", {"chat_template": "{{ x }}"})
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text(" ".join(f"w{index * index % 20}" for index in range(100)))
    return path


def test_the_run_holds_the_checkpoint_and_smaller_sizes(llama: Path, capsys: pytest.CaptureFixture[str]):
    out = llama.parent / "run"
    assert main(["nest", str(llama), str(out)]) == 0
    decoder, manifest, tokenizer = load_matlm(out)
    assert decoder.config.ffn_dims == (8, 16, 32, 64) and manifest.eos_token_ids == (5,)
    assert tokenizer.encode("w3").ids == [3]
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == "{{ x }}"
    assert manifest.provenance["nested_from"] == str(llama) and "sorted_on" not in manifest.provenance
    assert capsys.readouterr().out == f"{out}: S ffn=8x2, M ffn=16x2, L ffn=32x2, XL ffn=64x2\n"


def test_units_are_sorted_on_the_text_and_the_full_model_stays(llama: Path, text: Path):
    plain, by_text = llama.parent / "plain", llama.parent / "sorted"
    assert main(["nest", str(llama), str(plain), "--ffn-dims", "8", "64"]) == 0
    assert main(["nest", str(llama), str(by_text), "--ffn-dims", "8", "64", "--calibration", str(text)]) == 0
    (before, _, _), (after, manifest, _) = load_matlm(plain), load_matlm(by_text)
    assert before.config == after.config and before.config.ffn_dims == (8, 64)
    assert manifest.provenance["sorted_on"] == "notes.txt"
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        full = [decoder(tokens, decoder.space.full) for decoder in (before, after)]
        small = [decoder(tokens, decoder.space.smallest) for decoder in (before, after)]
    torch.testing.assert_close(*full, rtol=0, atol=1e-5)
    assert (small[0] - small[1]).abs().max() > 1e-4


def test_a_folder_with_something_in_it_is_not_overwritten(llama: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["nest", str(llama), str(llama)]) == 2
    assert "exists and is not empty" in capsys.readouterr().err


def test_a_calibration_text_is_read_in_full_rows(text: Path, tokenizer: Tokenizer):
    blocks = calibration_blocks(text, tokenizer, 32)
    assert [block.shape for block in blocks] == [(1, 32)] * 3
    assert blocks[1][0, :3].tolist() == [32 * 32 % 20, 33 * 33 % 20, 34 * 34 % 20]


def test_a_calibration_text_that_is_too_short_or_missing_is_refused(text: Path, tokenizer: Tokenizer):
    with pytest.raises(DataError, match="has 100 tokens; name a text of at least 101"):
        calibration_blocks(text, tokenizer, 101)
    with pytest.raises(DataError, match="cannot be read"):
        calibration_blocks(text.with_name("gone.txt"), tokenizer, 10)
