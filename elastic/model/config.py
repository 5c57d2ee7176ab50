"""What an encoder is made of: plain values that rebuild it exactly.

A configuration is stored in the manifest beside the weights, so every size is explicit; `VisionConfig.from_timm`
fills them in from a timm model's name. Nothing here holds weights.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, cast, get_args

import timm
import torch
from timm.layers.attention import Attention
from timm.layers.diff_attention import DiffAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from elastic.errors import ConfigError
from elastic.model.nested import check_nestable, full_ffn_dim, hidden_features, mlp_of
from elastic.submodel import Space

IMAGE_CHANNELS = 3

Pool = Literal["avg", "token", "map"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """How stored pixels become model input; serving and evaluation follow it exactly."""

    image_size: int
    """Side of the square input in pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted per channel, after scaling pixels to [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divided by per channel, after subtracting the mean."""
    background: tuple[int, int, int] = (255, 255, 255)
    """Colour (0-255) behind transparent pixels and around non-square images."""


@dataclass(frozen=True, slots=True)
class VisionShape:
    """Sizes of a built vision transformer that costs are computed from."""

    width: int
    depth: int
    ffn_dim: int
    """FFN hidden size of the full model, the same in every block."""
    num_heads: int
    num_patches: int
    num_prefix_tokens: int
    """Class and register tokens, which precede the patches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """A timm `VisionTransformer`, its embedding head included (`num_classes` is the full embed_dim)."""

    timm_name: str = "vit_tiny_patch16_224"
    """Any timm VisionTransformer with plain or gated MLP blocks, hybrids (`vit_tiny_r_s16_p8_224`) included."""
    image_size: int = 224
    """Side of the square input in pixels."""
    patch_size: int = 16
    """As timm means it: in pixels, or in cells of the convolutional stem's feature map for hybrids."""
    width: int = 192
    """Token width (timm's embed_dim)."""
    depth: int = 12
    """Number of transformer blocks."""
    num_heads: int = 3
    """Attention heads per block; divides `width`."""
    mlp_ratio: float = 4.0
    """FFN hidden size over `width`, of the full model."""
    pool: Pool = "avg"
    """Image representation: mean of patches, class token, or timm's attention pooling (SigLIP)."""
    num_cls_tokens: Literal[0, 1, 2] = 1
    """Class tokens; the second (TIPS) is timm's first register token."""
    num_registers: int = 0
    """Register tokens beyond the class tokens (DINOv2 with registers: 4)."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last block, rising linearly with depth."""
    position_std: float = 0.02
    """Standard deviation that learned positions start with (timm: 0.02). Where patches are pooled by their mean,
    larger ones let a short training run see *where* a patch is from its first step."""
    checkpoint: str | None = None
    """Weights to start from: a file, a timm folder, a run directory, a hub id (`timm/vit_tiny_patch16_224`), or the
    model of this package: `bundled`."""

    def __post_init__(self) -> None:
        if self.position_std <= 0:
            raise ConfigError("vision.position_std", self.position_std, "must be positive")
        if self.width % self.num_heads:
            raise ConfigError("vision.num_heads", self.num_heads, f"must divide width {self.width}")
        if self.pool == "token" and self.num_cls_tokens == 0:
            raise ConfigError("vision.pool", self.pool, "needs num_cls_tokens of at least 1")
        if self.num_registers < 0 or not 0 <= self.drop_path < 1:
            raise ConfigError("vision", self, "needs num_registers >= 0 and 0 <= drop_path < 1")

    @classmethod
    def from_timm(
        cls, timm_name: str, *, image_size: int | None = None, checkpoint: str | None = None
    ) -> "VisionConfig":
        """The configuration of a timm model with its own sizes, so that its checkpoints fit.

        Raises:
            ConfigError: timm has no such model, or it cannot be nested.
        """
        with torch.device("meta"):
            vit = _create(timm_name, {} if image_size is None else {"img_size": image_size})
        if vit.global_pool not in get_args(Pool):
            raise ConfigError("vision.pool", vit.global_pool, f"must be one of {get_args(Pool)}")
        return cls(
            timm_name=timm_name,
            image_size=vit.patch_embed.img_size[0],
            patch_size=vit.patch_embed.patch_size[0],
            width=vit.embed_dim,
            depth=len(vit.blocks),
            num_heads=_num_heads(vit),
            mlp_ratio=exact_mlp_ratio(hidden_features(mlp_of(vit.blocks[0])), vit.embed_dim),
            pool=cast("Pool", vit.global_pool),
            num_cls_tokens=1 if vit.has_class_token else 0,
            num_registers=vit.num_reg_tokens,
            checkpoint=checkpoint,
        )

    def timm_kwargs(self, embed_dim: int) -> dict[str, Any]:
        """Keyword arguments, all of them JSON values, with which `timm.create_model` rebuilds the tower."""
        return {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "global_pool": self.pool,
            "class_token": self.num_cls_tokens > 0,
            "reg_tokens": self.num_registers + (self.num_cls_tokens == 2),
            "drop_path_rate": self.drop_path,
            "num_classes": embed_dim,
        }

    def create(self, embed_dim: int) -> VisionTransformer:
        """A freshly initialised timm model, whose output is the embedding.

        Raises:
            ConfigError: timm cannot build it, or its blocks cannot be nested.
        """
        vit = _create(self.timm_name, self.timm_kwargs(embed_dim))
        if vit.pos_embed is not None:
            nn.init.trunc_normal_(vit.pos_embed, std=self.position_std)
        vit.patch_embed.strict_img_size = False  # local crops are smaller; `vit.py` looks at sizes itself
        return vit

    @property
    def shape(self) -> VisionShape:
        """The sizes of the model that this builds."""
        return _shape(replace(self, checkpoint=None))


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """A small transformer over caption tokens, nested like the vision transformer."""

    vocab_size: int = 4096
    """Number of token ids; id 0 is padding."""
    max_tokens: int = 24
    """Longest caption in tokens; longer ones are cut by the tokenizer."""
    width: int = 128
    """Token width."""
    depth: int = 2
    """Number of transformer blocks."""
    num_heads: int = 4
    """Attention heads per block; divides `width`."""
    mlp_ratio: float = 4.0
    """FFN hidden size over `width`, of the full tower."""

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ConfigError("text.num_heads", self.num_heads, f"must divide width {self.width}")
        if min(self.vocab_size, self.max_tokens, self.depth) < 1:
            raise ConfigError("text", self, "needs positive vocab_size, max_tokens and depth")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """A nested image-text encoder: two towers, one embedding space, and what was trained to be chosen."""

    vision: VisionConfig = VisionConfig()
    """The image tower."""
    text: TextConfig | None = None
    """The text tower; left out, the encoder embeds images only."""
    ffn_fractions: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2, 1.0)
    """Trained FFN sizes as fractions of the full one, ascending to 1 (MatFormer: S, M, L, XL)."""
    embed_dims: tuple[int, ...] = (16, 32, 64, 128)
    """Trained embedding widths, ascending; the last is the whole embedding."""

    def __post_init__(self) -> None:
        if not self.ffn_fractions or self.ffn_fractions[-1] != 1 or min(self.ffn_fractions) <= 0:
            raise ConfigError("ffn_fractions", self.ffn_fractions, "must be positive, ascending and end with 1")

    @property
    def embed_dim(self) -> int:
        """The width of the whole embedding."""
        return self.embed_dims[-1]

    @property
    def space(self) -> Space:
        """What can be chosen of the image tower."""
        shape = self.vision.shape
        return Space(shape.depth, self._ffn_dims(shape.ffn_dim), self.embed_dims)

    @property
    def text_space(self) -> Space | None:
        """What can be chosen of the text tower, if there is one."""
        if self.text is None:
            return None
        full = int(self.text.width * self.text.mlp_ratio)
        return Space(self.text.depth, self._ffn_dims(full), self.embed_dims)

    def _ffn_dims(self, full: int) -> tuple[int, ...]:
        exact = [fraction * full for fraction in self.ffn_fractions]
        if any(abs(size - round(size)) > 1e-6 for size in exact):
            raise ConfigError("ffn_fractions", self.ffn_fractions, f"must give whole sizes of FFN width {full}")
        return tuple(round(size) for size in exact)


def exact_mlp_ratio(hidden: int, width: int) -> float:
    """The ratio from which timm computes, by `int(width * ratio)`, exactly `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _num_heads(vit: VisionTransformer) -> int:
    attention = vit.blocks[0].attn
    assert isinstance(attention, Attention | DiffAttention), type(attention)
    return attention.num_heads


def _create(name: str, arguments: dict[str, Any]) -> VisionTransformer:
    try:
        model = timm.create_model(name, **arguments)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError("vision.timm_name", name, f"timm cannot build it with {arguments}: {error}") from error
    if not isinstance(model, VisionTransformer):
        raise ConfigError("vision.timm_name", name, f"is a {type(model).__name__}, not a timm VisionTransformer")
    check_nestable(model.blocks)
    return model


@lru_cache(maxsize=64)
def _shape(config: VisionConfig) -> VisionShape:
    with torch.device("meta"):
        vit = config.create(1)
    return VisionShape(
        width=vit.embed_dim,
        depth=len(vit.blocks),
        ffn_dim=full_ffn_dim(mlp_of(vit.blocks[0])),
        num_heads=_num_heads(vit),
        num_patches=vit.patch_embed.num_patches,
        num_prefix_tokens=vit.num_prefix_tokens,
    )
