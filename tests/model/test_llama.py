"""Llama checkpoints in and out: the files of transformers are read as they are, what is written it computes alike."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from elastic.errors import CheckpointError, ConfigError, InvalidRequest
from elastic.model.decoder import Decoder, DecoderConfig, RopeScaling
from elastic.model.llama import (
    CONFIG,
    build_decoder,
    cut,
    decoder_config,
    default_ffn_dims,
    llama_config,
    llama_weights,
    read_llama,
    read_tokenizer_config,
)
from elastic.model.storage import write_json, write_weights
from elastic.submodel import Submodel

SMALL = DecoderConfig(
    vocab_size=50, width=32, depth=3, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dims=(16, 32, 64, 128), max_tokens=64
)
SCALED = replace(
    SMALL,
    tied=False,
    attention_bias=True,
    mlp_bias=True,
    rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_tokens=16),
)
MIXED = Submodel((16, 64, 128))


def make_decoder(config: DecoderConfig = SMALL) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    for parameter in decoder.parameters():  # larger than at the start, so that a mistake shows in the logits
        nn.init.normal_(parameter, std=0.3)
    return decoder


def draw(batch: int = 2, length: int = 20) -> torch.Tensor:
    return torch.randint(SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def write_llama(folder: Path, decoder: Decoder) -> Path:
    """The decoder's full model as transformers' own files, with a tokenizer."""
    config = transformers.LlamaConfig(**llama_config(decoder.config, torch.float32, (3,)))
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(decoder.state_dict())
    model.save_pretrained(folder)
    words = {f"w{index}": index for index in range(SMALL.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "llama", make_decoder())


@pytest.mark.parametrize("config", [SMALL, SCALED], ids=["tied", "untied, biased, scaled"])
def test_a_checkpoint_of_transformers_computes_the_same_here(tmp_path: Path, config: DecoderConfig):
    folder = write_llama(tmp_path / "llama", make_decoder(config))
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder)
    found = read_llama(str(folder))
    assert found.decoder.config == config and not found.decoder.training
    assert (found.eos_token_ids, found.tokenizer.encode("w4 w7").ids) == ((3,), [4, 7])
    with torch.no_grad():
        difference = found.decoder(draw(), found.decoder.space.full) - reference(draw()).logits
    assert difference.abs().max() < 1e-5


def test_a_checkpoint_in_parts_is_the_same(folder: Path, tmp_path: Path):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    shutil.copytree(folder, tmp_path / "parts", ignore=shutil.ignore_patterns("*.safetensors"))
    model.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    whole, parts = (read_llama(str(path)).decoder.state_dict() for path in (folder, tmp_path / "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_a_hub_id_is_looked_up_in_the_cache_of_the_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    repository = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(folder, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert read_llama("org/tiny").decoder.config == SMALL
    with pytest.raises(CheckpointError, match="org/none: is no local path, and the hub did not deliver it"):
        read_llama("org/none")


@pytest.mark.parametrize("source", ["nowhere", "/no/such/folder", "gone.gguf"])
def test_a_source_that_is_not_there_is_refused_with_what_could_be_named(source: str):
    with pytest.raises(CheckpointError, match=r"does not exist; name a folder .* \.gguf file, or a hub id"):
        read_llama(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2'; only Llama-type"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_type is 'yarn'"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "rope_type is 'linear'"),
    ],
)
def test_what_is_not_llama_is_refused(folder: Path, change: dict, message: str):
    write_json(folder / CONFIG, json.loads((folder / CONFIG).read_text()) | change)
    with pytest.raises(CheckpointError, match=message):
        read_llama(str(folder))


def test_what_an_old_config_leaves_out_has_transformers_defaults():
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = decoder_config(sizes | {"model_type": "llama", "num_attention_heads": 4}, "here")
    reference = transformers.LlamaConfig(**sizes, num_attention_heads=4)
    assert (config.num_kv_heads, config.head_dim, config.norm_eps, config.max_tokens) == (
        reference.num_key_value_heads,
        reference.head_dim,
        reference.rms_norm_eps,
        reference.max_position_embeddings,
    )
    assert config.rope_theta == reference.rope_parameters["rope_theta"]
    assert config.tied == reference.tie_word_embeddings


def test_a_config_without_a_size_is_refused(folder: Path):
    values = json.loads((folder / CONFIG).read_text())
    del values["hidden_size"]
    with pytest.raises(CheckpointError, match="has no 'hidden_size'"):
        decoder_config(values, "here")


@pytest.mark.parametrize("name", [CONFIG, "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_llama(str(folder))


def test_a_chat_template_beside_the_tokenizer_is_read_with_it(tmp_path: Path):
    assert read_tokenizer_config(tmp_path) == {}
    write_json(tmp_path / "tokenizer_config.json", {"eos_token": "x"})
    (tmp_path / "chat_template.jinja").write_text("{{ x }}")
    assert read_tokenizer_config(tmp_path) == {"eos_token": "x", "chat_template": "{{ x }}"}


def test_a_gguf_file_without_transformers_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.gguf").touch()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CheckpointError, match=r"pip install 'elastic\[lm\]'"):
        read_llama(str(tmp_path / "a.gguf"))


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(b"no such magic number" * 10)
    with pytest.raises(CheckpointError, match="transformers cannot read it"):
        read_llama(str(tmp_path / "a.gguf"))


def test_nested_sizes_are_an_eighth_a_quarter_a_half_and_all_in_multiples_of_eight():
    assert default_ffn_dims(1536) == (192, 384, 768, 1536)
    assert default_ffn_dims(8192) == (1024, 2048, 4096, 8192)
    assert default_ffn_dims(100) == (16, 24, 48, 100)
    assert default_ffn_dims(16) == (8, 16)
    assert default_ffn_dims(5) == (5,)


def test_nested_sizes_can_be_chosen_up_to_the_checkpoints_own(folder: Path):
    assert read_llama(str(folder), (8, 128)).decoder.config.ffn_dims == (8, 128)
    with pytest.raises(ConfigError, match="must end with the checkpoint's own size, 128"):
        read_llama(str(folder), (8, 64))


@pytest.mark.parametrize("config", [SMALL, SCALED], ids=["tied", "untied, biased, scaled"])
@pytest.mark.parametrize("ffn_dim", SMALL.ffn_dims)
def test_a_uniform_cut_is_a_llama_that_continues_texts_alike(tmp_path: Path, config: DecoderConfig, ffn_dim: int):
    decoder = make_decoder(config)
    submodel = decoder.space.uniform(ffn_dim)
    part = cut(decoder, submodel)
    write_weights(tmp_path / "model.safetensors", llama_weights(part))
    write_json(tmp_path / CONFIG, llama_config(part.config, torch.float32))
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert reference.config.intermediate_size == ffn_dim
    for prompt in draw(3, 6).split(1):
        expected = reference.generate(prompt, max_new_tokens=16, do_sample=False, pad_token_id=0)
        assert continue_greedily(part, part.space.full, prompt, 16) == expected[0].tolist()
        assert continue_greedily(decoder, submodel, prompt, 16) == expected[0].tolist()


def test_a_mixed_cut_equals_the_slice_it_was_cut_from():
    decoder = make_decoder(SCALED)
    part = cut(decoder, MIXED)
    assert part.config.full_ffn_dims == MIXED.ffn_dims and part.config.ffn_dims == SCALED.ffn_dims
    with torch.no_grad():
        torch.testing.assert_close(part(draw(), part.space.full), decoder(draw(), MIXED), rtol=0, atol=1e-5)


def test_smaller_granularities_stay_nested_in_a_cut():
    decoder = make_decoder()
    part = cut(decoder, decoder.space.uniform(64))
    assert part.config.ffn_dims == (16, 32, 64) and part.config.layer_ffn_dims is None
    mixed = Submodel((16, 32, 16))
    with torch.no_grad():
        torch.testing.assert_close(part(draw(), mixed), decoder(draw(), mixed), rtol=0, atol=1e-5)


def test_a_cut_of_a_mixed_cut_is_that_of_the_whole():
    decoder = make_decoder()
    part = cut(cut(decoder, MIXED), Submodel((64, 64, 64)))
    assert part.config.full_ffn_dims == (16, 64, 64)
    with torch.no_grad():
        expected = decoder(draw(), Submodel((16, 64, 64)))
        torch.testing.assert_close(part(draw(), part.space.full), expected, rtol=0, atol=1e-5)


def test_a_cut_shares_no_memory_with_what_it_was_cut_from():
    decoder = make_decoder()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    part = cut(decoder, decoder.space.smallest)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in decoder.state_dict().items())
    assert sum(tensor.untyped_storage().nbytes() for tensor in part.parameters()) == 4 * sum(
        tensor.numel() for tensor in part.parameters()
    )


def test_only_submodels_of_the_decoder_can_be_cut():
    with pytest.raises(InvalidRequest, match=r"FFN sizes \[17\] were not trained"):
        cut(make_decoder(), Submodel((17, 17, 17)))


def test_buffers_of_early_checkpoints_are_left_out():
    decoder = make_decoder()
    weights = llama_weights(decoder) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    assert build_decoder(SMALL, weights, "here").config == SMALL


def continue_greedily(decoder: Decoder, submodel: Submodel, prompt: torch.Tensor, count: int) -> Sequence[int]:
    tokens = prompt
    with torch.no_grad():
        for _ in range(count):
            tokens = torch.cat([tokens, decoder(tokens, submodel)[:, -1:].argmax(-1)], dim=1)
    return tokens[0].tolist()


def write_gguf(path: Path, decoder: Decoder, words: Sequence[str]) -> None:
    """A decoder as llama.cpp stores it: its names, the rows of q and k in its order of rotary pairs."""
    config = decoder.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_tokens)
    writer.add_block_count(config.depth)
    writer.add_feed_forward_length(config.ffn_dims[-1])
    writer.add_embedding_length(config.width)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(list(words))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for layer in range(config.depth):
        names |= {f"model.layers.{layer}.{ours}.weight": f"blk.{layer}.{its}.weight" for ours, its in parts.items()}
    for ours, its in names.items():
        tensor = decoder.state_dict()[ours]
        if "attn_q" in its or "attn_k" in its:
            tensor = tensor.unflatten(0, (-1, 2, config.head_dim // 2)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(its, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_read_with_its_tokens(tmp_path: Path):
    decoder = make_decoder()
    words = [*"abcdefghijklmnopqrstuvwxyz", "ab", *(f"<{index}>" for index in range(23))]
    write_gguf(tmp_path / "tiny.gguf", decoder, words)
    found = read_llama(str(tmp_path / "tiny.gguf"))
    assert replace(found.decoder.config, norm_eps=SMALL.norm_eps) == SMALL  # stored in float32
    assert found.eos_token_ids == (3,)
    assert found.tokenizer.encode("cab", add_special_tokens=False).ids == [2, 26]
    with torch.no_grad():
        expected = decoder(draw(), decoder.space.full)
        torch.testing.assert_close(found.decoder(draw(), found.decoder.space.full), expected, rtol=0, atol=1e-5)
