"""Importance of hidden units: what it counts, that sorting by it changes no full model and helps the small ones."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from elastic.model.decoder import Decoder, DecoderConfig
from elastic.model.importance import measure_importance, sort_hidden_units

CONFIG = DecoderConfig(
    vocab_size=50, width=32, depth=2, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dims=(16, 32, 64, 128), max_tokens=64
)


def make_decoder(config: DecoderConfig = CONFIG) -> Decoder:
    """Random weights, the columns of down of very different sizes."""
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    for name, parameter in decoder.named_parameters():
        nn.init.normal_(parameter, std=0.3)
        if name.endswith("down_proj.weight"):
            parameter.data *= torch.logspace(-3, 0, parameter.shape[1])[torch.randperm(parameter.shape[1])]
    return decoder


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(50, (2, 20), generator=generator), torch.randint(50, (1, 30), generator=generator)]


def test_it_is_the_mean_size_of_a_unit_times_the_norm_of_its_column(batches: list[torch.Tensor]):
    decoder, read = make_decoder(), []
    mlp = decoder.model.layers[1].mlp
    hook = mlp.register_forward_pre_hook(lambda _, arguments: read.append(arguments[0].flatten(0, 1)))
    found = measure_importance(decoder, batches)[1]
    hook.remove()
    inputs = torch.cat(read).double()
    assert inputs.shape == (70, 32)
    for unit in range(0, 128, 9):
        gate, up = (inputs @ linear.weight[unit].double() for linear in (mlp.gate_proj, mlp.up_proj))
        expected = (F.silu(gate) * up).abs().mean() * mlp.down_proj.weight[:, unit].double().norm()
        assert found[unit].item() == pytest.approx(expected.item(), rel=1e-5)


def test_how_the_text_is_cut_into_batches_does_not_matter(batches: list[torch.Tensor]):
    decoder = make_decoder()
    whole, parts = (measure_importance(decoder, found) for found in (batches, [*batches[0].split(1), batches[1]]))
    for first, second in zip(whole, parts, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=0)


@pytest.mark.parametrize("biased", [False, True])
def test_sorting_changes_no_logit_of_the_full_model(batches: list[torch.Tensor], biased: bool):
    decoder = make_decoder(replace(CONFIG, mlp_bias=biased))
    with torch.no_grad():
        before = decoder(batches[0], decoder.space.full)
        weights = decoder.model.layers[0].mlp.down_proj.weight.clone()
        sort_hidden_units(decoder, measure_importance(decoder, batches))
        torch.testing.assert_close(decoder(batches[0], decoder.space.full), before, rtol=0, atol=1e-5)
    assert not torch.equal(decoder.model.layers[0].mlp.down_proj.weight, weights)


def test_sorted_units_descend_in_importance(batches: list[torch.Tensor]):
    decoder = make_decoder()
    sort_hidden_units(decoder, measure_importance(decoder, batches))
    for scores in measure_importance(decoder, batches):
        assert (scores.diff() <= scores[:-1] * 1e-5).all()


def test_every_smaller_submodel_comes_nearer_to_the_full_one(batches: list[torch.Tensor]):
    decoder = make_decoder()
    with torch.no_grad():
        full = decoder(batches[0], decoder.space.full)

        def distances() -> list[float]:
            smaller = list(decoder.space.granularities.values())[:-1]
            return [(decoder(batches[0], submodel) - full).norm().item() for submodel in smaller]

        before = distances()
        sort_hidden_units(decoder, measure_importance(decoder, batches))
        assert all(now < 0.7 * then for now, then in zip(distances(), before, strict=True))


def test_measuring_leaves_nothing_behind(batches: list[torch.Tensor]):
    decoder = make_decoder()
    measure_importance(decoder, batches)
    assert not any(module._forward_pre_hooks for module in decoder.modules())
