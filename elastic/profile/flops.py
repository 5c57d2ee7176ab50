"""What a submodel costs on paper: parameters and floating-point operations, computed from the configuration.

Convention: one multiply-accumulate is **two** FLOPs, and only matrix products and convolutions count (norms,
activations, softmax, biases and resampling do not), which is what torch's `FlopCounterMode` counts too. Papers that
report "GFLOPs" of a ViT often mean multiply-accumulates: half of these numbers.

The counts are of one image, or of one caption of `max_tokens` tokens. Parameters are those that the submodel reads,
the number its extraction has. An embedding width below the full one is a prefix of the same output, so it changes
neither.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from elastic.model.config import IMAGE_CHANNELS, EncoderConfig
from elastic.model.decoder import DecoderConfig, parameters_by_part
from elastic.model.nested import full_ffn_dim
from elastic.model.text import TextTower
from elastic.submodel import Submodel


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The size of one submodel of one tower."""

    params: int
    """Parameters that it reads, an encoder's embedding head included."""
    flops: int
    """Floating-point operations per item; two per multiply-accumulate."""


def count_image(config: EncoderConfig, submodel: Submodel) -> Cost:
    """Parameters and FLOPs per image of the image tower."""
    vit = _meta_vit(config)
    tokens = vit.patch_embed.num_patches + vit.num_prefix_tokens
    flops = _stem_flops(vit, config.vision.image_size) + _blocks_flops(vit.blocks, submodel, tokens)
    flops += _pool_flops(vit, tokens) + _linear_flops(vit.head)
    return Cost(params=_params(vit, vit.blocks, submodel), flops=flops)


def count_text(config: EncoderConfig, submodel: Submodel, num_tokens: int | None = None) -> Cost:
    """Parameters and FLOPs per caption of the text tower; `num_tokens` defaults to the longest caption."""
    assert config.text is not None, "this encoder has no text tower"
    tower = _meta_text(config)
    tokens = num_tokens or config.text.max_tokens
    flops = _blocks_flops(tower.blocks, submodel, tokens) + _linear_flops(tower.head)
    return Cost(params=_params(tower, tower.blocks, submodel), flops=flops)


def count_token(config: DecoderConfig, submodel: Submodel, context: int) -> Cost:
    """Parameters outside of embedding, head and norms, and FLOPs of one token that attends to `context` tokens.

    A block of `context` tokens read at once costs as much for each of its tokens where the products that a causal mask
    hides are computed, half as much attention where they are not.
    """
    parts = parameters_by_part(config, submodel)
    attended = 2 * context * config.depth * config.num_heads * config.head_dim  # queries x keys, weights x values
    flops = 2 * (parts["attention"] + parts["ffn"] + parts["head"] + attended)
    return Cost(params=parts["attention"] + parts["ffn"], flops=flops)


@lru_cache(maxsize=16)
def _meta_vit(config: EncoderConfig) -> VisionTransformer:
    with torch.device("meta"):
        return config.vision.create(config.embed_dim)


@lru_cache(maxsize=16)
def _meta_text(config: EncoderConfig) -> TextTower:
    assert config.text is not None
    with torch.device("meta"):
        return TextTower(config.text, config.embed_dim)


def _params(tower: nn.Module, blocks: Any, submodel: Submodel) -> int:
    """All parameters less those of the FFN units beyond each layer's size."""
    total = sum(parameter.numel() for parameter in tower.parameters())
    for block, ffn_dim in zip(blocks, submodel.ffn_dims, strict=True):
        total -= (full_ffn_dim(block.mlp) - ffn_dim) * _params_per_unit(block.mlp)
    return total


def _params_per_unit(mlp: Any) -> int:
    """Parameters of one hidden unit: its rows of the first layer(s), their biases, and its output column."""
    full = full_ffn_dim(mlp)
    inner = [value for name, value in mlp.named_parameters() if not name.startswith("fc2")]
    return sum(value.numel() for value in inner) // full + mlp.fc2.out_features


def _blocks_flops(blocks: Any, submodel: Submodel, tokens: int) -> int:
    """Per block: qkv and output projections, the two attention products, and the FFN at its size."""
    total = 0
    for block, ffn_dim in zip(blocks, submodel.ffn_dims, strict=True):
        attention_dim: int = block.attn.proj.in_features
        total += tokens * (_linear_flops(block.attn.qkv) + _linear_flops(block.attn.proj))
        total += 2 * (2 * tokens * tokens * attention_dim)  # queries x keys, weights x values
        total += tokens * 2 * ffn_dim * _products_per_unit(block.mlp)
    return total


def _products_per_unit(mlp: Any) -> int:
    """Multiply-accumulates per token and hidden unit: a row of each input layer (two when gated), an output column."""
    inner = [layer for name, layer in mlp.named_children() if name.startswith("fc1")]
    return sum(layer.weight.numel() for layer in inner) // full_ffn_dim(mlp) + mlp.fc2.out_features


def _linear_flops(layer: nn.Module) -> int:
    """FLOPs of a linear layer on one vector; zero for timm's placeholder of a missing head."""
    return 2 * layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else 0


def _pool_flops(vit: VisionTransformer, tokens: int) -> int:
    """FLOPs of attention pooling (SigLIP); mean and class-token pooling have no product."""
    pool: Any = vit.attn_pool
    if pool is None:
        return 0
    latents = pool.latent.shape[1]
    projections = latents * (_linear_flops(pool.q) + _linear_flops(pool.proj)) + tokens * _linear_flops(pool.kv)
    attention = 2 * (2 * latents * tokens * pool.proj.in_features)
    ffn = latents * 2 * full_ffn_dim(pool.mlp) * _products_per_unit(pool.mlp)
    return projections + attention + ffn


def _stem_flops(vit: VisionTransformer, image_size: int) -> int:
    """FLOPs of the patch embedding, one convolution or a convolutional stem.

    A shape-only run on torch's meta device supplies each convolution's output size; nothing is computed.
    """
    total = 0

    def add(layer: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(layer, nn.Conv2d)
        kernel = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
        total += 2 * output.numel() * kernel

    hooks = [m.register_forward_hook(add) for m in vit.patch_embed.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        vit.patch_embed(torch.empty(1, IMAGE_CHANNELS, image_size, image_size, device="meta"))
    for hook in hooks:
        hook.remove()
    return total
