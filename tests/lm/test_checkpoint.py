"""A language-model run: read back exactly, a Llama checkpoint to others, never taken for an image-text run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from elastic import checkpoint
from elastic.cli import main
from elastic.errors import CheckpointError
from elastic.lm.checkpoint import LmManifest, load_matlm, save_lm_manifest, save_matlm
from elastic.model.decoder import Decoder, DecoderConfig, RopeScaling
from elastic.model.hub import TOKENIZER
from elastic.model.storage import MANIFEST, WEIGHTS, read_weights

END = "<|endoftext|>"
TEXT = "the red cat stops"
TEXTS = ("a red bus stops, a blue bus goes", "the cat sat on the mat", "S\u00e4tze mit Umlauten 1 2 3")
CONFIG = DecoderConfig(
    vocab_size=290,
    width=32,
    depth=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dims=(16, 32, 64, 128),
    max_tokens=64,
)


def make_decoder(config: DecoderConfig = CONFIG) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    for parameter in decoder.parameters():  # larger than at the start, so that a mistake shows in the logits
        nn.init.normal_(parameter, std=0.3)
    return decoder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Byte-level byte pairs, 290 tokens at most, the first of which ends a text."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator(TEXTS, trainer)
    return engine


@pytest.fixture
def decoder() -> Decoder:
    return make_decoder()


@pytest.fixture
def manifest(decoder: Decoder) -> LmManifest:
    return LmManifest(
        decoder=decoder.config, eos_token_ids=(0,), tables={"latency": "l.parquet"}, provenance={"step": 7}
    )


@pytest.fixture
def run(tmp_path: Path, decoder: Decoder, manifest: LmManifest, tokenizer: Tokenizer) -> Path:
    save_matlm(tmp_path / "run", decoder, manifest, tokenizer)
    return tmp_path / "run"


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_is_read_back_exactly(tmp_path: Path, tokenizer: Tokenizer, tied: bool):
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_tokens=16)
    decoder = Decoder(replace(CONFIG, tied=tied, rope_scaling=scaling))
    manifest = LmManifest(decoder=decoder.config, eos_token_ids=(0, 3), tables={"a": "b"}, provenance={"list": [1, 2]})
    save_matlm(tmp_path, decoder, manifest, tokenizer)
    found, found_manifest, found_tokenizer = load_matlm(tmp_path)
    assert found_manifest == manifest and found.config == decoder.config and not found.training
    assert found.state_dict().keys() == decoder.state_dict().keys()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in decoder.state_dict().items())
    assert (found.lm_head.weight is found.model.embed_tokens.weight) == tied
    assert found_tokenizer.to_str() == tokenizer.to_str()


def test_a_tied_head_is_stored_once(run: Path):
    assert "lm_head.weight" not in read_weights(run / WEIGHTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_precision_is_kept(tmp_path: Path, decoder: Decoder, manifest: LmManifest, tokenizer: Tokenizer, dtype):
    save_matlm(tmp_path, decoder.to(dtype), manifest, tokenizer)
    assert load_matlm(tmp_path)[0].lm_head.weight.dtype == dtype
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).dtype == dtype


def test_loaded_weights_are_memory_mapped_not_copied(run: Path):
    found, _, _ = load_matlm(run)
    pointer = found.model.layers[0].mlp.gate_proj.weight.data_ptr()
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(run / WEIGHTS) in line]
    bounds = [tuple(int(part, 16) for part in fields[0].split("-")) for fields in mapped]
    assert any(start <= pointer < end for start, end in bounds)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_a_run_and_computes_the_same(tmp_path: Path, tokenizer: Tokenizer, tied: bool):
    decoder = Decoder(replace(CONFIG, tied=tied))
    save_matlm(tmp_path, decoder, LmManifest(decoder=decoder.config, eos_token_ids=(0,)), tokenizer)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.tensor([tokenizer.encode(TEXT).ids])
    assert type(reference) is transformers.LlamaForCausalLM
    with torch.no_grad():
        difference = reference(tokens).logits - decoder(tokens, decoder.space.full)
    assert difference.abs().max() < 1e-5


def test_transformers_reads_the_same_tokens_and_knows_where_a_text_ends(run: Path, tokenizer: Tokenizer):
    found = transformers.AutoTokenizer.from_pretrained(run)
    ids = tokenizer.encode(TEXT).ids
    assert found(TEXT)["input_ids"] == ids and found.decode(ids) == TEXT
    assert found.eos_token_id == 0 and found.model_max_length == 64
    assert transformers.AutoConfig.from_pretrained(run).eos_token_id == 0


def test_what_a_tokenizer_knows_besides_is_kept(
    tmp_path: Path, decoder: Decoder, manifest: LmManifest, tokenizer: Tokenizer
):
    save_matlm(tmp_path, decoder, manifest, tokenizer, {"chat_template": "{{ messages[0].content }}!"})
    found = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert found.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi!"
    assert found.eos_token_id == 0


def test_a_manifest_is_replaced_whole(run: Path, manifest: LmManifest):
    save_lm_manifest(run, replace(manifest, tables={"quality": "q.parquet"}))
    assert load_matlm(run)[1].tables == {"quality": "q.parquet"}
    names = ["config.json", MANIFEST, WEIGHTS, TOKENIZER, "tokenizer_config.json"]
    assert sorted(path.name for path in run.iterdir()) == sorted(names)


@pytest.mark.parametrize("change", [{"surprise": 1}, {"decoder": {"width": 1}}, {"decoder": None}])
def test_a_manifest_with_other_fields_is_refused(run: Path, change: dict):
    edit(run, **change)
    with pytest.raises(CheckpointError, match="is not a manifest"):
        load_matlm(run)


def test_weights_of_other_shapes_are_refused_with_the_differences(run: Path):
    values = json.loads((run / MANIFEST).read_text())
    edit(run, decoder=values["decoder"] | {"vocab_size": 291})
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight: expected \(291, 32\), found \(290, 32\)"):
        load_matlm(run)


def test_a_lost_tokenizer_is_reported(run: Path):
    (run / TOKENIZER).unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: does not exist"):
        load_matlm(run)


def test_an_image_text_run_is_refused():
    with pytest.raises(CheckpointError, match="holds an image-text encoder; this needs a language model"):
        load_matlm(checkpoint.BUNDLED_RUN)


def test_the_image_side_refuses_a_language_model(run: Path):
    with pytest.raises(CheckpointError, match="holds a language model; this needs an image-text encoder"):
        checkpoint.load_model(run)


@pytest.mark.parametrize("verb", ["profile", "probe", "select"])
def test_a_verb_of_the_image_side_says_what_it_was_given(run: Path, verb: str, capsys: pytest.CaptureFixture[str]):
    assert main([verb, str(run), *(["--latency-slo-ms", "5"] if verb == "select" else [])]) == 2
    assert "holds a language model; this needs an image-text encoder: name another run" in capsys.readouterr().err


def edit(run: Path, **changes: object) -> None:
    """Change top-level fields of a manifest on disk."""
    values = json.loads((run / MANIFEST).read_text()) | changes
    (run / MANIFEST).write_text(json.dumps(values))
