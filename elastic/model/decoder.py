"""MatLM: a Llama-type decoder whose feed-forward blocks are nested (MatFormer).

RMSNorm before attention and feed-forward, rotary positions, grouped-query attention, SwiGLU. Parameter names are those
of transformers' `LlamaForCausalLM`, so that a full model is a Llama checkpoint and the other way round. A submodel
reads the first rows of gate and up and the first columns of down; attention, norms, embedding and head are shared, so
keys and values have the same shape in every submodel.

Source: MatFormer (arXiv 2310.07707) section 3.1; Llama (arXiv 2302.13971) section 2.2; RoPE (arXiv 2104.09864); GQA
(arXiv 2305.13245).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from elastic.errors import ConfigError
from elastic.model.cache import KvCache
from elastic.submodel import Space, Submodel

INIT_STD = 0.02
"""Standard deviation of every matrix at the start, as in Llama."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """Llama 3.1's stretching of rotary positions beyond the length of pretraining."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """Every size of a decoder; rebuilds the module that its weights belong to."""

    vocab_size: int
    """Tokens that can be read and predicted."""
    width: int = 256
    """Size of the residual stream (transformers: hidden_size)."""
    depth: int = 6
    """Number of blocks."""
    num_heads: int = 4
    """Attention heads per block."""
    num_kv_heads: int = 4
    """Key and value heads, each shared by `num_heads / num_kv_heads` attention heads."""
    head_dim: int = 64
    """Size of one head, even."""
    ffn_dims: tuple[int, ...] = (128, 256, 512, 1024)
    """FFN hidden sizes of the granularities, ascending; the last is the whole block's (intermediate_size)."""
    max_tokens: int = 512
    """Longest sequence."""
    rope_theta: float = 10000.0
    """Base of the rotary positions' wavelengths."""
    rope_scaling: RopeScaling | None = None
    """How rotary positions are stretched, if they are."""
    norm_eps: float = 1e-5
    """Added to the mean square in every RMSNorm."""
    tied: bool = True
    """Whether the head reads the embedding's weights."""
    attention_bias: bool = False
    """Whether the projections of attention have biases."""
    mlp_bias: bool = False
    """Whether gate, up and down have biases."""
    layer_ffn_dims: tuple[int, ...] | None = None
    """FFN hidden size of every block of a mixed submodel that was cut out; `None`: all have the last of `ffn_dims`.
    A submodel that asks a block for more hidden units than it has gets all of them."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "depth", "num_heads", "num_kv_heads", "head_dim", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"decoder.{name}", getattr(self, name), "must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError("decoder.num_kv_heads", self.num_kv_heads, f"must divide num_heads={self.num_heads}")
        if self.head_dim % 2:
            raise ConfigError("decoder.head_dim", self.head_dim, "must be even: rotary positions turn pairs")
        Space(self.depth, self.ffn_dims, (self.width,))  # checks the FFN sizes
        if len(self.full_ffn_dims) != self.depth or max(self.full_ffn_dims) != self.ffn_dims[-1]:
            rule = f"needs {self.depth} sizes, the largest {self.ffn_dims[-1]}"
            raise ConfigError("decoder.layer_ffn_dims", self.layer_ffn_dims, rule)

    @property
    def full_ffn_dims(self) -> tuple[int, ...]:
        """FFN hidden size of every block, as it is stored."""
        return self.ffn_dims[-1:] * self.depth if self.layer_ffn_dims is None else self.layer_ffn_dims

    @property
    def space(self) -> Space:
        """What can be chosen. The one embedding width is that of the residual stream, which is not nested."""
        return Space(self.depth, self.ffn_dims, (self.width,))


class Decoder(nn.Module):
    """Next-token logits at any submodel, with or without a cache of what was read before."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Stack(config)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.tie()
        self._initialise()

    @property
    def space(self) -> Space:
        """What can be chosen of it."""
        return self.config.space

    def forward(
        self, tokens: Int[Tensor, "batch new"], submodel: Submodel, cache: KvCache | None = None
    ) -> Float[Tensor, "batch new vocab"]:
        """Logits of the token after each.

        With a cache, `tokens` continue its sequences: they are stored behind them and the sequences are that much
        longer afterwards.

        Raises:
            InvalidRequest: the cache has too few slots left.
        """
        hidden = self.run(self.embed(tokens), submodel, cache)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return self.logits(hidden)

    def tie(self) -> None:
        """Let a tied head read the embedding's weights; again needed when those have been replaced."""
        if self.config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def embed(self, tokens: Int[Tensor, "batch new"]) -> Float[Tensor, "batch new width"]:
        """What the first block reads."""
        return self.model.embed_tokens(tokens)

    def run(
        self,
        hidden: Float[Tensor, "batch new width"],
        submodel: Submodel,
        cache: KvCache | None = None,
        layers: Sequence[int] | None = None,
    ) -> Float[Tensor, "batch new width"]:
        """The residual stream behind the given blocks, in order; all of them if `layers` is left out.

        Writes into the cache behind its sequences, and leaves their lengths to the caller.
        """
        count = hidden.shape[1]
        if cache is not None:
            cache.reserve(count)
        turn = self._rotation(hidden, cache)
        mask = None if cache is None else cache.visible(count)
        for index in range(self.config.depth) if layers is None else layers:
            hidden = self.model.layers[index](hidden, submodel.ffn_dims[index], turn, mask, cache, index)
        return hidden

    def logits(self, hidden: Float[Tensor, "batch new width"]) -> Float[Tensor, "batch new vocab"]:
        """Final norm and head."""
        return self.lm_head(self.model.norm(hidden))

    def new_cache(self, batch: int = 1, num_slots: int | None = None) -> KvCache:
        """An empty cache of this decoder's device and precision; `max_tokens` slots if not said otherwise."""
        config, weight = self.config, self.model.embed_tokens.weight
        slots = config.max_tokens if num_slots is None else num_slots
        shape = (config.depth, batch, config.num_kv_heads, slots, config.head_dim)
        return KvCache(weight.new_zeros(shape), weight.new_zeros(shape))

    def _rotation(self, hidden: Tensor, cache: KvCache | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the new tokens' positions, [batch or 1, 1, new, head_dim]."""
        count, device = hidden.shape[1], hidden.device
        positions = torch.arange(count, device=device)[None]
        if cache is not None:
            starts = cache.lengths[:1] if cache.is_even else cache.lengths
            positions = positions + torch.tensor(starts, device=device)[:, None]
        angles = positions[:, None, :, None] * self.frequencies(device)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(hidden.dtype), angles.sin().to(hidden.dtype)

    def frequencies(self, device: torch.device) -> Float[Tensor, " half"]:
        """Radians per position of every pair of features that rotary positions turn."""
        # Computed anew, in float32: as a buffer it would follow the weights into bfloat16 and lose positions.
        config = self.config
        exponents = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32) / config.head_dim
        frequencies = 1.0 / config.rope_theta**exponents
        return frequencies if config.rope_scaling is None else stretch(frequencies, config.rope_scaling)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)


def stretch(frequencies: Float[Tensor, " half"], scaling: RopeScaling) -> Float[Tensor, " half"]:
    """Llama 3.1's frequencies: short wavelengths stay, long ones are divided by the factor, between is a blend."""
    wavelength = 2 * math.pi / frequencies
    blend = (scaling.original_max_tokens / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blend = blend.clamp(0, 1)
    return blend * frequencies + (1 - blend) * frequencies / scaling.factor


Matrix = Literal["embedding", "attention", "ffn", "head"]


def parameters_by_part(config: DecoderConfig, submodel: Submodel) -> dict[Matrix, int]:
    """Weights of matrices that a submodel reads; a tied head counts as the embedding and as the head.

    Two FLOPs per weight of all parts but the embedding is the cost of one token, besides attention over the context.
    """
    heads = config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    return {
        "embedding": config.vocab_size * config.width,
        "attention": config.depth * config.width * heads,
        "ffn": 3 * config.width * sum(map(min, submodel.ffn_dims, config.full_ffn_dims)),
        "head": config.vocab_size * config.width,
    }


class _Stack(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(_Block(config, ffn_dim) for ffn_dim in config.full_ffn_dims)
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)


class _Block(nn.Module):
    def __init__(self, config: DecoderConfig, ffn_dim: int) -> None:
        super().__init__()
        self.self_attn = _Attention(config)
        self.mlp = SwiGlu(config, ffn_dim)
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)

    def forward(
        self,
        x: Float[Tensor, "batch new width"],
        ffn_dim: int,
        turn: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "batch 1 new seen"] | None,
        cache: KvCache | None,
        layer: int,
    ) -> Float[Tensor, "batch new width"]:
        x = x + self.self_attn(self.input_layernorm(x), turn, mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x), ffn_dim)


class _Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim, self.is_grouped = config.head_dim, config.num_kv_heads < config.num_heads
        heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, heads, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.width, kv_heads, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.width, kv_heads, bias=config.attention_bias)
        self.o_proj = nn.Linear(heads, config.width, bias=config.attention_bias)

    def forward(
        self,
        x: Float[Tensor, "batch new width"],
        turn: tuple[Tensor, Tensor],
        mask: Bool[Tensor, "batch 1 new seen"] | None,
        cache: KvCache | None,
        layer: int,
    ) -> Float[Tensor, "batch new width"]:
        queries, keys, values = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        queries, keys = rotate(queries, *turn), rotate(keys, *turn)
        if cache is not None:
            keys, values = cache.write(layer, keys, values)
        out = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=cache is None, enable_gqa=self.is_grouped
        )
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class SwiGlu(nn.Module):
    """A gated feed-forward block whose first hidden units are themselves one."""

    def __init__(self, config: DecoderConfig, ffn_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, ffn_dim, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.width, ffn_dim, bias=config.mlp_bias)
        self.down_proj = nn.Linear(ffn_dim, config.width, bias=config.mlp_bias)

    def forward(self, x: Float[Tensor, "batch new width"], ffn_dim: int) -> Float[Tensor, "batch new width"]:
        """What the first `ffn_dim` hidden units add to the residual stream."""
        return F.linear(self.hidden(x, ffn_dim), self.down_proj.weight[:, :ffn_dim], self.down_proj.bias)

    def hidden(self, x: Float[Tensor, "batch new width"], ffn_dim: int) -> Float[Tensor, "batch new units"]:
        """The first `ffn_dim` hidden units, or all that there are."""
        return F.silu(_first_rows(self.gate_proj, x, ffn_dim)) * _first_rows(self.up_proj, x, ffn_dim)


def rotate(x: Float[Tensor, "batch heads new dim"], cos: Tensor, sin: Tensor) -> Float[Tensor, "batch heads new dim"]:
    """Turn pairs of features, the first half with the second, by each token's angles."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _first_rows(linear: nn.Linear, x: Tensor, count: int) -> Tensor:
    return F.linear(x, linear.weight[:count], None if linear.bias is None else linear.bias[:count])
