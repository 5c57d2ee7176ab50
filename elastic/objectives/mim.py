"""Masked images beside a supervised objective: a shallow decoder is to tell what the hidden patches show.

The encoder sees the image twice, whole for the other objectives and masked for this one. What it made of the masked
image goes through a small decoder, which is dropped after training: the model that is served is the encoder alone.

The idea is that of "Improve Supervised Representation Learning with Masked Image Modeling" (arXiv 2312.00950). Only
its abstract could be read, which leaves open the targets, the mask, the decoder and the weight. So this is a method in
its spirit: mask tokens in place of patches and a two-block decoder in full attention are our choices. Targets are the
pixels of each patch, less their mean and over their standard deviation (MAE, arXiv 2111.06377), or the nearest code
of those pixels in a k-means codebook (`codebook`), where the paper says "image tokens".
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from timm.layers.weight_init import trunc_normal_
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from elastic.batch import Batch, Features, Passes, PassName
from elastic.errors import ConfigError
from elastic.model.config import IMAGE_CHANNELS
from elastic.model.vit import patch_pixels
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.objectives.codebook import Codebook
from elastic.objectives.distributed import global_mean, global_sum
from elastic.objectives.tips import mean_in_images

_EPSILON = 1e-6
"""Added to the variance of a patch's pixels; a patch of one colour channel and no texture is then all zero."""
_INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedImages(ObjectiveConfig):
    """Prediction of hidden patches by a decoder that is thrown away. Sweep `weight` first: it competes for capacity."""

    weight: float = 0.1
    """Factor of its term in the joint loss; 0.1 for short or small runs, 0.3 for long ones."""
    target: Literal["tokens", "pixels"] = "tokens"
    """tokens: the code of the patch, by cross-entropy; pixels: the patch itself, by squared error."""
    positions: Literal["masked", "all"] = "masked"
    """Patches that count."""
    num_codes: int = 64
    """Codes for `tokens`; fewer if `code_entropy@share` says that most of them are hardly used."""
    fit_steps: int = 20
    """Batches that the codes are fitted on; the term is zero meanwhile, and the codes frozen afterwards."""
    target_px: int = 8
    """Side in pixels that a patch is averaged down to before it is a target."""
    depth: int = 2
    """Blocks of the decoder; one or two are enough where representation is the aim."""
    max_width: int = 512
    """The decoder is as wide as the encoder, but at most this."""
    head_dim: int = 32
    """Width of each of the decoder's attention heads."""

    def __post_init__(self) -> None:
        ObjectiveConfig.__post_init__(self)
        if self.num_codes < 2:
            raise ConfigError("num_codes", self.num_codes, "must be at least 2")
        for name in ("fit_steps", "target_px", "max_width", "head_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1")
        if self.depth < 0:
            raise ConfigError("depth", self.depth, "must not be negative")

    @property
    def passes(self) -> frozenset[PassName]:
        """The student on masked images."""
        return frozenset({"masked"})

    def build(self, dims: Dimensions) -> "MaskedImagesLoss":
        """The loss with its decoder and codebook.

        Raises:
            ConfigError: the decoder's width is no multiple of `head_dim`.
        """
        return MaskedImagesLoss(self, dims)


class MaskedImagesLoss(Objective):
    """Cross-entropy to codes or squared error to pixels, a mean within images and then over them."""

    def __init__(self, config: MaskedImages, dims: Dimensions) -> None:
        super().__init__()
        self.config = config
        size = IMAGE_CHANNELS * config.target_px**2
        tokens = config.target == "tokens"
        self.codebook = Codebook(config.num_codes, size, config.fit_steps) if tokens else None
        self.decoder = Decoder(config, dims, config.num_codes if tokens else size)

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """`tokens`, divided by the log of the number of codes, so that a weight holds for any; or `pixels`.

        Both start near 1: codes at random, or all pixels at their mean. While the codebook is fitted, which a module
        does in training mode only, as it does with running statistics, `tokens` is zero but still in the graph.
        """
        assert passes.masked is not None and batch.mask is not None
        counted = batch.mask if self.config.positions == "masked" else torch.ones_like(batch.mask)
        patches = normalised_patches(batch.images, batch.mask.shape[1], self.config.target_px)
        decoded = self.decoder(passes.masked)
        if self.codebook is None:
            return {"pixels": global_mean(*mean_in_images((decoded - patches).square().mean(dim=2), counted))}
        is_fitted = self.codebook.is_fitted
        if self.training and not is_fitted:
            self.codebook.fit(patches.flatten(0, 1))
        codes = self.codebook.nearest(patches)
        losses = F.cross_entropy(decoded.transpose(1, 2), codes, reduction="none") / math.log(self.config.num_codes)
        tokens = global_mean(*mean_in_images(losses, counted)) * float(is_fitted)
        return {"tokens": tokens} | tokens_report(decoded.detach(), codes, batch.mask)


class Decoder(nn.Module):
    """Tokens of a masked image to one output for each patch, at the patch's own place."""

    def __init__(self, config: MaskedImages, dims: Dimensions, num_outputs: int) -> None:
        super().__init__()
        assert dims.num_patches > 0, "the decoder needs the number of patches"
        width = min(dims.width, config.max_width)
        if width % config.head_dim:
            raise ConfigError("head_dim", config.head_dim, f"must divide the decoder's width of {width}")
        self.project = nn.Linear(dims.width, width)
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + dims.num_patches, width))
        heads = width // config.head_dim
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_outputs)
        trunc_normal_(self.pos_embed, std=_INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=_INIT_STD)
                nn.init.zeros_(module.bias)

    def forward(self, masked: Features) -> Float[Tensor, "images patches outputs"]:
        """Reads the patch tokens, and in front of them the pooled image representation."""
        tokens = torch.cat([masked.cls_token[:, None], masked.patch_tokens], dim=1)
        x = self.blocks(self.project(tokens) + self.pos_embed)
        return self.head(self.norm(x[:, 1:]))


def normalised_patches(
    images: Float[Tensor, "images channels height width"], num_patches: int, target_px: int
) -> Float[Tensor, "images patches values"]:
    """The pixels of every patch at `target_px` a side, less their mean and over their standard deviation."""
    side = round(num_patches**0.5) * target_px
    if images.shape[-1] != side:
        images = F.interpolate(images, size=(side, side), mode="area")
    pixels = patch_pixels(images, num_patches)
    centred = pixels - pixels.mean(dim=2, keepdim=True)
    return centred / (centred.square().mean(dim=2, keepdim=True) + _EPSILON).sqrt()


def tokens_report(
    decoded: Float[Tensor, "images patches codes"],
    codes: Int[Tensor, "images patches"],
    mask: Bool[Tensor, "images patches"],
) -> Terms:
    """What is predicted of hidden patches, what naming the most frequent code would, and how evenly codes are used."""
    num_codes = decoded.shape[2]
    hits = (decoded.argmax(dim=2) == codes).float()
    uses = [chosen.bincount(minlength=num_codes) for chosen in (codes[mask], codes.flatten())]
    hidden, everywhere = global_sum(torch.stack(uses))
    shares = everywhere / everywhere.sum()
    return {
        "accuracy@masked": global_mean(hits.flatten(), mask.flatten()),
        "accuracy@majority": hidden.max() / hidden.sum().clamp(min=1),
        "code_entropy@share": torch.special.entr(shares).sum() / math.log(num_codes),
    }
