"""The image tower: a timm VisionTransformer run at any submodel, on whole, masked or smaller images.

The module stays timm's, with timm's parameter names, so a full-size checkpoint moves between both. Only the loop
over its blocks is ours, because the FFN size of each block is an argument here, and what stands before it, because
timm's own knows no masks and no second image size.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from elastic.batch import Features
from elastic.model.nested import RunBlock, nested_block
from elastic.submodel import Submodel


@dataclass(frozen=True, slots=True)
class Mask:
    """Which patches are hidden, and the token that stands in their place."""

    hidden: Bool[Tensor, "batch patches"]
    token: Float[Tensor, " width"]


def forward_vit(
    vit: VisionTransformer,
    images: Float[Tensor, "batch channels height width"],
    submodel: Submodel,
    mask: Mask | None = None,
    run_block: RunBlock = nested_block,
) -> Features:
    """Image features at one submodel; at the full one and without a mask, `embedding` equals `vit(images)`.

    Images of another size than the tower's are embedded on a grid of positions resampled to theirs. There is no
    `second_embedding`: only training reads it, see `embed_second`.
    """
    tokens = forward_tokens(vit, images, submodel, mask, run_block)
    pooled = vit.forward_head(tokens, pre_logits=True)
    second = tokens[:, 1] if vit.has_class_token and vit.num_reg_tokens > 0 else None
    return Features(
        embedding=vit.head(pooled),
        cls_token=pooled,
        patch_tokens=tokens[:, vit.num_prefix_tokens :],
        second_cls_token=second,
    )


def embed_second(vit: VisionTransformer, features: Features) -> Features:
    """The same features with the embedding of the second class token, through the same head, if there is one."""
    second = features.second_cls_token
    return features if second is None else replace(features, second_embedding=vit.head(vit.fc_norm(second)))


def forward_tokens(
    vit: VisionTransformer,
    images: Float[Tensor, "batch channels height width"],
    submodel: Submodel,
    mask: Mask | None = None,
    run_block: RunBlock = nested_block,
) -> Float[Tensor, "batch tokens dim"]:
    """Prefix and patch tokens after the last block and timm's final norm (none where timm pools first)."""
    assert submodel.depth == len(vit.blocks), f"{submodel} for {len(vit.blocks)} blocks"
    size = vit.patch_embed.img_size
    if mask is None and images.shape[-2:] == size:
        x = vit._pos_embed(vit.patch_embed(images))
    else:
        x = _with_positions(vit, *_patches(vit, images, mask))
    x = vit.norm_pre(vit.patch_drop(x))
    for block, ffn_dim in zip(vit.blocks, submodel.ffn_dims, strict=True):
        x = run_block(block, x, ffn_dim, None)
    return vit.norm(x)


def patch_pixels(images: Float[Tensor, "batch channels height width"], num_patches: int) -> Float[Tensor, "..."]:
    """The pixels of every patch, `[batch, patches, channels * side * side]`, in the order of the patch tokens."""
    side = images.shape[-1] // round(num_patches**0.5)
    return F.unfold(images, kernel_size=side, stride=side).transpose(1, 2)


def _patches(
    vit: VisionTransformer, images: Tensor, mask: Mask | None
) -> tuple[Float[Tensor, "batch patches dim"], tuple[int, int]]:
    """Patch tokens without positions, hidden ones replaced, and their grid.

    A hidden patch's pixels are cleared too: a convolutional stem would show them to the patches beside it.
    """
    if mask is not None:
        images = images * _visible_pixels(mask.hidden, images)
    x = vit.patch_embed(images)
    grid = images.shape[-1] * vit.patch_embed.grid_size[0] // vit.patch_embed.img_size[0]
    assert x.shape[1] == grid * grid, f"{images.shape[-1]} pixels are no whole number of patches"
    if mask is not None:
        x = torch.where(mask.hidden[..., None], mask.token.to(x.dtype), x)
    return x, (grid, grid)


def _visible_pixels(hidden: Bool[Tensor, "batch patches"], images: Tensor) -> Float[Tensor, "batch 1 height width"]:
    side = round(hidden.shape[1] ** 0.5)
    visible = (~hidden).to(images.dtype).view(len(hidden), 1, side, side)
    return F.interpolate(visible, size=images.shape[-2:], mode="nearest")


def _with_positions(vit: VisionTransformer, x: Tensor, grid: tuple[int, int]) -> Float[Tensor, "batch tokens dim"]:
    """Positions added, prefix tokens in front: timm's `_pos_embed` for any grid.

    Positions are resampled bilinearly with antialiasing to an explicit size (TIPS's rule).
    """
    prefix = [token.expand(len(x), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
    if vit.pos_embed is None:
        return torch.cat([*prefix, x], dim=1)
    num_prefix = 0 if vit.no_embed_class else vit.num_prefix_tokens
    positions = resample_abs_pos_embed(
        vit.pos_embed, list(grid), list(vit.patch_embed.grid_size), num_prefix, interpolation="bilinear"
    )
    if vit.no_embed_class:
        return vit.pos_drop(torch.cat([*prefix, x + positions], dim=1))
    return vit.pos_drop(torch.cat([*prefix, x], dim=1) + positions)
