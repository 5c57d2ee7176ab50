"""A feed-forward block whose first `m` hidden units are themselves a trained block (MatFormer).

Slice, never mask: the active size is an argument, the weights are views, and units beyond it are neither read
nor given a gradient. The output bias is never sliced and nothing is rescaled. Works on timm's own modules, so
parameter names stay timm's.

Source: MatFormer (arXiv 2310.07707) section 3.1; gated blocks as in google-gemini/gemma-cookbook's slicing of
Gemma 3n (rows of gate and up, columns of down).
"""

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn

from elastic.errors import ConfigError


def check_nestable(blocks: Iterable[nn.Module]) -> None:
    """Accept transformer blocks that `nested_block` can slice.

    Raises:
        ConfigError: a block or MLP of another kind, or an MLP with a norm over its hidden units.
    """
    for index, block in enumerate(blocks):
        where = f"blocks[{index}]"
        if type(block) not in (Block, ResPostBlock):
            raise ConfigError(where, type(block).__name__, "only timm's Block and ResPostBlock can be nested")
        mlp = mlp_of(block)
        if type(mlp) not in (Mlp, GluMlp, SwiGLU) or not isinstance(mlp.fc2, nn.Linear):
            raise ConfigError(f"{where}.mlp", type(mlp).__name__, "only linear Mlp, GluMlp, SwiGLU can be nested")
        if not isinstance(mlp.norm, nn.Identity):
            raise ConfigError(f"{where}.mlp.norm", type(mlp.norm).__name__, "hidden norms cannot be nested")


def mlp_of(block: nn.Module) -> nn.Module:
    """The feed-forward part of a timm block."""
    assert isinstance(block, Block | ResPostBlock), type(block)
    return block.mlp


def full_ffn_dim(mlp: nn.Module) -> int:
    """Hidden size of a whole timm MLP: the number of its output layer's inputs."""
    return _linear(mlp, "fc2").in_features


def hidden_features(mlp: nn.Module) -> int:
    """The `hidden_features` that timm built an MLP with: a `GluMlp`'s counts its two halves."""
    return _linear(mlp, "fc1").out_features if isinstance(mlp, GluMlp) else full_ffn_dim(mlp)


def nested_mlp(mlp: nn.Module, x: Float[Tensor, "*batch dim"], ffn_dim: int) -> Float[Tensor, "*batch dim"]:
    """Output of the MLP made of the first `ffn_dim` hidden units of a timm `Mlp`, `GluMlp` or `SwiGLU`."""
    assert isinstance(mlp, Mlp | GluMlp | SwiGLU), type(mlp)
    output = _linear(mlp, "fc2")
    assert 0 < ffn_dim <= output.in_features, f"{ffn_dim} of {output.in_features} hidden units"
    hidden = mlp.drop1(_hidden(mlp, x, ffn_dim))
    return mlp.drop2(F.linear(hidden, output.weight[:, :ffn_dim], output.bias))


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


RunBlock: TypeAlias = Callable[[nn.Module, Tensor, int, Tensor | None], Tensor]
"""How a tower runs one block: `nested_block`, or something around it."""


def slice_mlp(mlp: nn.Module, ffn_dim: int) -> dict[str, Tensor]:
    """Exactly the weights that `nested_mlp` reads, under the MLP's own parameter names."""
    full = full_ffn_dim(mlp)
    parts = dict(mlp.state_dict())
    for name, tensor in parts.items():
        if name == "fc2.weight":
            parts[name] = tensor[:, :ffn_dim]
        elif name != "fc2.bias":
            second_half = [tensor[full : full + ffn_dim]] if isinstance(mlp, GluMlp) else []
            parts[name] = torch.cat([tensor[:ffn_dim], *second_half])
    return parts


def _hidden(mlp: Mlp | GluMlp | SwiGLU, x: Tensor, ffn_dim: int) -> Tensor:
    if isinstance(mlp, SwiGLU):
        return mlp.act(_rows(mlp.fc1_g, x, 0, ffn_dim)) * _rows(mlp.fc1_x, x, 0, ffn_dim)
    inputs = _linear(mlp, "fc1")
    if isinstance(mlp, Mlp):
        return mlp.act(_rows(inputs, x, 0, ffn_dim))
    first, second = _rows(inputs, x, 0, ffn_dim), _rows(inputs, x, full_ffn_dim(mlp), ffn_dim)
    return first * mlp.act(second) if mlp.gate_last else mlp.act(first) * second


def _rows(linear: nn.Linear, x: Tensor, start: int, count: int) -> Tensor:
    bias = None if linear.bias is None else linear.bias[start : start + count]
    return F.linear(x, linear.weight[start : start + count], bias)


def _linear(mlp: nn.Module, name: str) -> nn.Linear:
    layer = getattr(mlp, name)
    assert isinstance(layer, nn.Linear), f"{name} is {type(layer).__name__}"
    return layer
