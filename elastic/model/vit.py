"""The image tower: a timm VisionTransformer run at any submodel.

The module stays timm's, with timm's parameter names, so a full-size checkpoint moves between both. Only the loop
over its blocks is ours, because the FFN size of each block is an argument here.
"""

from jaxtyping import Float
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from elastic.batch import Features
from elastic.model.nested import nested_block
from elastic.submodel import Submodel


def forward_vit(
    vit: VisionTransformer, images: Float[Tensor, "batch channels height width"], submodel: Submodel
) -> Features:
    """Image features at one submodel; at the full one, `embedding` equals `vit(images)`."""
    tokens = forward_tokens(vit, images, submodel)
    pooled = vit.forward_head(tokens, pre_logits=True)
    has_second = vit.has_class_token and vit.num_reg_tokens > 0
    return Features(
        embedding=vit.head(pooled),
        cls_token=pooled,
        patch_tokens=tokens[:, vit.num_prefix_tokens :],
        second_cls_token=tokens[:, 1] if has_second else None,
    )


def forward_tokens(
    vit: VisionTransformer, images: Float[Tensor, "batch channels height width"], submodel: Submodel
) -> Float[Tensor, "batch tokens dim"]:
    """Prefix and patch tokens after the last block and timm's final norm (none where timm pools first)."""
    assert submodel.depth == len(vit.blocks), f"{submodel} for {len(vit.blocks)} blocks"
    x = vit.patch_drop(vit._pos_embed(vit.patch_embed(images)))
    x = vit.norm_pre(x)
    for block, ffn_dim in zip(vit.blocks, submodel.ffn_dims, strict=True):
        x = nested_block(block, x, ffn_dim)
    return vit.norm(x)
