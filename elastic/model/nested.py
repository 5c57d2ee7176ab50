"""A feed-forward block whose first `m` hidden units are themselves a trained block (MatFormer).

Slice, never mask: the active size is an argument, the weights are views, and units beyond it are neither read
nor given a gradient. The output bias is never sliced and nothing is rescaled. Works on timm's own modules, so
parameter names stay timm's.

Source: MatFormer (arXiv 2310.07707) section 3.1; gated blocks as in google-gemini/gemma-cookbook's slicing of
Gemma 3n (rows of gate and up, columns of down).
"""

from collections.abc import Iterable

import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers import GluMlp, Mlp, SwiGLU
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn

from elastic.errors import ConfigError


def full_ffn_dim(mlp: nn.Module) -> int:
    """Hidden size of a whole timm MLP: the number of its output layer's inputs."""
    assert isinstance(mlp, Mlp | GluMlp | SwiGLU), type(mlp)
    return mlp.fc2.in_features


def hidden_features(mlp: nn.Module) -> int:
    """The `hidden_features` that timm built an MLP with: a `GluMlp`'s counts its two halves."""
    return mlp.fc1.out_features if isinstance(mlp, Mlp | GluMlp) else full_ffn_dim(mlp)


def check_nestable(blocks: Iterable[nn.Module]) -> None:
    """Accept transformer blocks that `nested_block` can slice.

    Raises:
        ConfigError: a block or MLP of another kind, or an MLP with a norm over its hidden units.
    """
    for index, block in enumerate(blocks):
        where = f"blocks[{index}]"
        if type(block) not in (Block, ResPostBlock):
            raise ConfigError(where, type(block).__name__, "only timm's Block and ResPostBlock can be nested")
        if type(block.mlp) not in (Mlp, GluMlp, SwiGLU) or not isinstance(block.mlp.fc2, nn.Linear):
            raise ConfigError(f"{where}.mlp", type(block.mlp).__name__, "only linear Mlp, GluMlp, SwiGLU can be nested")
        if not isinstance(block.mlp.norm, nn.Identity):
            raise ConfigError(f"{where}.mlp.norm", type(block.mlp.norm).__name__, "hidden norms cannot be nested")


def nested_mlp(mlp: nn.Module, x: Float[Tensor, "*batch dim"], ffn_dim: int) -> Float[Tensor, "*batch dim"]:
    """Output of the MLP made of the first `ffn_dim` hidden units of a timm `Mlp`, `GluMlp` or `SwiGLU`."""
    assert isinstance(mlp, Mlp | GluMlp | SwiGLU), type(mlp)
    assert 0 < ffn_dim <= mlp.fc2.in_features, f"{ffn_dim} of {mlp.fc2.in_features} hidden units"
    hidden = mlp.drop1(_hidden(mlp, x, ffn_dim))
    return mlp.drop2(F.linear(hidden, mlp.fc2.weight[:, :ffn_dim], mlp.fc2.bias))


def nested_block(
    block: nn.Module,
    x: Float[Tensor, "batch tokens dim"],
    ffn_dim: int,
    attn_mask: Bool[Tensor, "batch 1 1 tokens"] | None = None,
) -> Float[Tensor, "batch tokens dim"]:
    """One timm transformer block with the first `ffn_dim` FFN units; `attn_mask` is True where to attend."""
    if isinstance(block, ResPostBlock):
        x = x + block.drop_path1(block.norm1(block.attn(x, attn_mask=attn_mask)))
        return x + block.drop_path2(block.norm2(nested_mlp(block.mlp, x, ffn_dim)))
    assert isinstance(block, Block), type(block)
    x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x), attn_mask=attn_mask)))
    return x + block.drop_path2(block.ls2(nested_mlp(block.mlp, block.norm2(x), ffn_dim)))


def _hidden(mlp: Mlp | GluMlp | SwiGLU, x: Tensor, ffn_dim: int) -> Tensor:
    if isinstance(mlp, SwiGLU):
        return mlp.act(_rows(mlp.fc1_g, x, 0, ffn_dim)) * _rows(mlp.fc1_x, x, 0, ffn_dim)
    if isinstance(mlp, GluMlp):
        first, second = _rows(mlp.fc1, x, 0, ffn_dim), _rows(mlp.fc1, x, mlp.fc2.in_features, ffn_dim)
        return first * mlp.act(second) if mlp.gate_last else mlp.act(first) * second
    return mlp.act(_rows(mlp.fc1, x, 0, ffn_dim))


def _rows(linear: nn.Linear, x: Tensor, start: int, count: int) -> Tensor:
    bias = None if linear.bias is None else linear.bias[start : start + count]
    return F.linear(x, linear.weight[start : start + count], bias)
