"""MatFormer's definition: a submodel is a prefix of the hidden units, and nothing else changes."""

import pytest
import torch
from timm.layers.mlp import GluMlp, Mlp, SwiGLU
from timm.layers.norm import LayerNorm
from timm.models.vision_transformer import Block, ParallelThingsBlock
from torch import Tensor, nn

from elastic.errors import ConfigError
from elastic.model.nested import check_nestable, full_ffn_dim, hidden_features, nested_block, nested_mlp, slice_mlp

FULL, HALF = 8, 4
MLPS = {
    "gelu": lambda: Mlp(5, FULL),
    "relu_without_bias": lambda: Mlp(5, FULL, act_layer=nn.ReLU, bias=False),
    "gated_last": lambda: GluMlp(5, 2 * FULL),
    "gated_first": lambda: GluMlp(5, 2 * FULL, act_layer=nn.SiLU, gate_last=False),
    "split": lambda: SwiGLU(5, FULL),
}


@pytest.fixture(params=MLPS)
def mlp(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return MLPS[request.param]().double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masked(mlp: nn.Module, x: Tensor, ffn_dim: int) -> Tensor:
    """The same prefix by multiplying hidden units with zero, which costs as much as the full block."""
    mask = (torch.arange(FULL) < ffn_dim).double()
    hook = mlp.fc2.register_forward_pre_hook(lambda _, inputs: (inputs[0] * mask,))
    output = mlp(x)
    hook.remove()
    return output


def test_a_slice_equals_masking_the_other_hidden_units(mlp: nn.Module, x: Tensor):
    for ffn_dim in range(1, FULL + 1):
        torch.testing.assert_close(nested_mlp(mlp, x, ffn_dim), masked(mlp, x, ffn_dim), rtol=0, atol=1e-12)


def test_gradients_of_a_slice_equal_those_of_masking(mlp: nn.Module, x: Tensor):
    parameters = list(mlp.parameters())
    sliced = torch.autograd.grad(nested_mlp(mlp, x, HALF).square().sum(), parameters)
    for a, b in zip(sliced, torch.autograd.grad(masked(mlp, x, HALF).square().sum(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_whole_width_equals_the_timm_module(mlp: nn.Module, x: Tensor):
    torch.testing.assert_close(nested_mlp(mlp, x, FULL), mlp(x), rtol=0, atol=1e-12)


def test_units_beyond_the_width_get_exactly_zero_gradient(mlp: nn.Module, x: Tensor):
    nested_mlp(mlp, x, HALF).square().sum().backward()
    for name, parameter in mlp.named_parameters():
        grad = parameter.grad
        assert grad is not None
        if name == "fc2.bias":
            assert (grad != 0).all()
        elif name == "fc2.weight":
            assert (grad[:, HALF:] == 0).all() and (grad[:, :HALF] != 0).any()
        else:
            halves = grad.chunk(2) if isinstance(mlp, GluMlp) else (grad,)
            assert all((half[HALF:] == 0).all() and (half[:HALF] != 0).any() for half in halves)


def test_units_beyond_the_width_are_not_even_read(mlp: nn.Module, x: Tensor):
    expected = nested_mlp(mlp, x, HALF)
    with torch.no_grad():
        mlp.fc2.weight[:, HALF:] = torch.nan
    assert torch.equal(nested_mlp(mlp, x, HALF), expected)


def test_sliced_weights_hold_what_the_slice_reads(mlp: nn.Module, x: Tensor):
    parts = slice_mlp(mlp, HALF)
    assert set(parts) == set(mlp.state_dict())
    smaller = type(mlp)(5, 2 * HALF, gate_last=mlp.gate_last) if isinstance(mlp, GluMlp) else type(mlp)(5, HALF)
    smaller.act = mlp.act
    weights = parts | {name: torch.zeros_like(p) for name, p in smaller.state_dict().items() if name not in parts}
    smaller.double().load_state_dict(weights)
    torch.testing.assert_close(smaller(x), nested_mlp(mlp, x, HALF), rtol=0, atol=1e-12)


def test_sizes_are_read_from_the_module(mlp: nn.Module):
    assert full_ffn_dim(mlp) == FULL
    assert hidden_features(mlp) == (2 * FULL if isinstance(mlp, GluMlp) else FULL)


def test_a_width_beyond_the_module_is_a_programming_error(mlp: nn.Module, x: Tensor):
    with pytest.raises(AssertionError, match="9 of 8 hidden units"):
        nested_mlp(mlp, x, FULL + 1)


def test_a_whole_block_equals_timms_own_with_padding_masked():
    torch.manual_seed(0)
    block = Block(6, 2, qkv_bias=True, init_values=0.5).double()
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])[:, None, None]
    torch.testing.assert_close(nested_block(block, x, 24, mask), block(x, attn_mask=mask), rtol=0, atol=1e-12)


def test_blocks_that_cannot_be_sliced_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"blocks\[1\]='ParallelThingsBlock'"):
        check_nestable([Block(6, 2), ParallelThingsBlock(6, 2)])
    with pytest.raises(ConfigError, match=r"blocks\[0\].mlp.norm"):
        check_nestable([Block(6, 2, scale_mlp_norm=True, norm_layer=LayerNorm)])
    convolutional = Block(6, 2)
    convolutional.mlp = Mlp(6, 8, use_conv=True)
    with pytest.raises(ConfigError, match=r"blocks\[0\].mlp='Mlp'"):
        check_nestable([convolutional])
