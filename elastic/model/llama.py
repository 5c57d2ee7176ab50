"""Llama checkpoints as decoders and decoders as Llama checkpoints, in the files that transformers and vLLM read.

`read_llama` takes a local folder (`config.json`, one or many safetensors files, `tokenizer.json`), the id of such a
repository on the Hugging Face hub, or a GGUF file. Only the last needs transformers. Weights of folders stay
memory-mapped. Nesting adds no weights: which sizes are nested is a choice that is made here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from elastic.errors import CheckpointError, ConfigError
from elastic.model.decoder import Decoder, DecoderConfig, RopeScaling
from elastic.model.hub import TOKENIZER, TOKENIZER_CONFIG, download, read_tokenizer
from elastic.model.storage import WEIGHTS, load_weights, read_weights
from elastic.submodel import Submodel

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"

FFN_FRACTIONS = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Nested parts of the FFN hidden units if not said otherwise, as in MatFormer."""

_INDEX, _CHAT_TEMPLATE = "model.safetensors.index.json", "chat_template.jinja"
_WANTED = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, GENERATION_CONFIG, _CHAT_TEMPLATE, "*.safetensors", _INDEX)
"""Files of a repository on the hub."""
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_ROUND_TO = 8
"""Nested sizes are multiples of this, which matrix units want."""


@dataclass(frozen=True, slots=True)
class Llama:
    """A decoder and all that turns text into its tokens and back."""

    decoder: Decoder
    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a text."""
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    """`tokenizer_config.json` with the chat template in it: what AutoTokenizer reads besides `tokenizer.json`."""


def read_llama(source: str, ffn_dims: Sequence[int] = ()) -> Llama:
    """The checkpoint in a folder, a GGUF file or a hub repository; in eval mode, on the CPU.

    `ffn_dims` are the nested FFN hidden sizes, ascending, the last the whole; left out, `FFN_FRACTIONS` of the whole.

    Raises:
        CheckpointError: nothing there, not Llama-type, or damaged.
        ConfigError: sizes that cannot be nested in it.
    """
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, ffn_dims)
    if path.suffix == ".gguf" and path.is_file():
        return _read_gguf(path, ffn_dims)
    if not _HUB_ID.fullmatch(source):
        advice = "name a folder with config.json, a .gguf file, or a hub id such as org/model"
        raise CheckpointError(source, "does not exist", advice)
    return _read_folder(download(source, _WANTED), ffn_dims)


def decoder_config(values: Mapping[str, Any], where: str, ffn_dims: Sequence[int] = ()) -> DecoderConfig:
    """The decoder that a Llama `config.json` describes, of transformers 4 or 5; what it leaves out is their default.

    Raises:
        CheckpointError: not Llama-type, or something that the decoder does not compute.
        ConfigError: sizes that cannot be nested in it.
    """
    found = {"model_type": None, "hidden_act": "silu", "quantization_config": None} | dict(values)
    for name, wanted in (("model_type", "llama"), ("hidden_act", "silu"), ("quantization_config", None)):
        if found[name] != wanted:
            advice = f"only Llama-type checkpoints with {name} {wanted} can be nested"
            raise CheckpointError(where, f"{name} is {found[name]!r}", advice)
    try:
        theta, scaling = _rope(values, where)
        width, num_heads, hidden = values["hidden_size"], values["num_attention_heads"], values["intermediate_size"]
        config = DecoderConfig(
            vocab_size=values["vocab_size"],
            width=width,
            depth=values["num_hidden_layers"],
            num_heads=num_heads,
            num_kv_heads=values.get("num_key_value_heads") or num_heads,
            head_dim=values.get("head_dim") or width // num_heads,
            ffn_dims=tuple(ffn_dims) or default_ffn_dims(hidden),
            max_tokens=values.get("max_position_embeddings", 2048),
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=values.get("rms_norm_eps", 1e-6),
            tied=values.get("tie_word_embeddings", False),
            attention_bias=values.get("attention_bias", False),
            mlp_bias=values.get("mlp_bias", False),
        )
    except KeyError as error:
        raise CheckpointError(where, f"has no {error}", "restore the checkpoint's config.json") from error
    if config.ffn_dims[-1] != hidden:
        raise ConfigError("ffn_dims", config.ffn_dims, f"must end with the checkpoint's own size, {hidden}")
    return config


def llama_config(config: DecoderConfig, dtype: torch.dtype, eos_token_ids: Sequence[int] = ()) -> dict[str, Any]:
    """The `config.json` of a decoder's full model. A cut-out mixed submodel has none: Llama knows one FFN size."""
    assert config.layer_ffn_dims is None
    scaling = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_dims[-1],
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_tokens,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if scaling is None
        else {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_tokens,
        },
        "tie_word_embeddings": config.tied,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": None,  # written, since LlamaConfig has defaults
        "eos_token_id": eos_token_ids[0] if len(eos_token_ids) == 1 else list(eos_token_ids) or None,
    }


def default_ffn_dims(hidden: int) -> tuple[int, ...]:
    """`FFN_FRACTIONS` of the hidden size, rounded to multiples of 8; fewer where rounding makes some alike."""
    rounded = {max(_ROUND_TO, round(hidden * part / _ROUND_TO) * _ROUND_TO) for part in FFN_FRACTIONS[:-1]}
    return (*sorted(size for size in rounded if size < hidden), hidden)


def build_decoder(config: DecoderConfig, weights: Mapping[str, Tensor], where: str) -> Decoder:
    """The decoder around a Llama checkpoint's weights, which are not copied; in eval mode.

    Raises:
        CheckpointError: names or shapes differ; the message lists the differences.
    """
    with torch.device("meta"):
        decoder = Decoder(config)
    # Early checkpoints store what follows from rope_theta.
    named = {name: tensor for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tied and _EMBEDDING in named:
        named[_HEAD] = named[_EMBEDDING]
    load_weights(decoder, named, where)
    decoder.tie()
    return decoder.eval()


def llama_weights(decoder: Decoder) -> dict[str, Tensor]:
    """What a Llama checkpoint stores: every weight once, a tied head not at all."""
    return {name: tensor for name, tensor in decoder.state_dict().items() if name != _HEAD or not decoder.config.tied}


def cut(decoder: Decoder, submodel: Submodel) -> Decoder:
    """A decoder whose full model is one submodel, with copies of the weights that it reads; in eval mode.

    The smaller granularities stay nested in it.

    Raises:
        InvalidRequest: the submodel does not belong to the decoder.
    """
    decoder.space.check(submodel)
    sizes = tuple(map(min, submodel.ffn_dims, decoder.config.full_ffn_dims))
    config = replace(
        decoder.config,
        ffn_dims=tuple(size for size in decoder.config.ffn_dims if size <= max(sizes)),
        layer_ffn_dims=None if len(set(sizes)) == 1 else sizes,
    )
    weights = llama_weights(decoder)
    for layer, size in enumerate(sizes):
        for name in ("gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias"):
            if (key := f"model.layers.{layer}.mlp.{name}") in weights:
                weights[key] = weights[key][:size]
        key = f"model.layers.{layer}.mlp.down_proj.weight"
        weights[key] = weights[key][:, :size]
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}
    return build_decoder(config, copies, str(submodel))


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` of a folder with the chat template in it; empty if there is none.

    Raises:
        CheckpointError: not JSON.
    """
    values = _read_json(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    template = folder / _CHAT_TEMPLATE
    return values | ({"chat_template": template.read_text(encoding="utf-8")} if template.is_file() else {})


def _read_folder(folder: Path, ffn_dims: Sequence[int]) -> Llama:
    values = _read_json(folder / CONFIG)
    config = decoder_config(values, str(folder), ffn_dims)
    if (folder / GENERATION_CONFIG).is_file():
        values |= _read_json(folder / GENERATION_CONFIG)
    return Llama(
        build_decoder(config, _read_shards(folder), str(folder)),
        read_tokenizer(folder / TOKENIZER),
        _token_ids(values.get("eos_token_id")),
        read_tokenizer_config(folder),
    )


def _read_gguf(path: Path, ffn_dims: Sequence[int]) -> Llama:
    try:
        import transformers
    except ImportError as error:
        problem = "is a GGUF file, which transformers reads, and that is not installed"
        raise CheckpointError(str(path), problem, "pip install 'elastic[lm]'") from error
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except (ImportError, OSError, ValueError, KeyError) as error:
        advice = "pip install 'elastic[lm]', and name a GGUF file that transformers supports"
        raise CheckpointError(str(path), f"transformers cannot read it ({error})", advice) from error
    values = model.config.to_dict() | {"quantization_config": None}  # it has undone that
    config = decoder_config(values, str(path), ffn_dims)
    words = tokenizer.special_tokens_map | {"chat_template": tokenizer.chat_template}
    return Llama(
        build_decoder(config, model.state_dict(), str(path)),
        tokenizer.backend_tokenizer,
        _token_ids(model.config.eos_token_id),
        {name: value for name, value in words.items() if value is not None},
    )


def _read_shards(folder: Path) -> dict[str, Tensor]:
    if (folder / _INDEX).is_file():
        files = sorted(set(_read_json(folder / _INDEX)["weight_map"].values()))
    elif (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    else:
        raise CheckpointError(str(folder), f"holds no {WEIGHTS}", "write it with transformers' save_pretrained")
    return {name: tensor for file in files for name, tensor in read_weights(folder / file).items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), f"cannot be read ({error})", "restore the checkpoint") from error


def _rope(values: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}  # of transformers 5; of 4
    theta = rope.get("rope_theta") or values.get("rope_theta") or 10000.0
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        advice = "only unscaled positions and rope_type llama3 are computed here"
        raise CheckpointError(where, f"rope_type is {kind!r}", advice)
    return theta, RopeScaling(
        factor=rope["factor"],
        low_freq_factor=rope["low_freq_factor"],
        high_freq_factor=rope["high_freq_factor"],
        original_max_tokens=rope["original_max_position_embeddings"],
    )


def _token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)
