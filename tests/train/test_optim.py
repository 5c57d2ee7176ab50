import math

import pytest
import torch
from torch import nn

from elastic.errors import ConfigError
from elastic.train.optim import OptimConfig, build_optimizer, is_decayed, learning_rate_at


def test_the_rate_rises_linearly_then_falls_along_half_a_cosine():
    config = OptimConfig(learning_rate=1.0, warmup_fraction=0.1)
    rates = [learning_rate_at(step, 101, config) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def test_the_rate_ends_at_its_final_fraction():
    config = OptimConfig(learning_rate=2.0, final_fraction=0.25, warmup_fraction=0.0)
    assert learning_rate_at(0, 10, config) == 2.0
    assert learning_rate_at(9, 10, config) == pytest.approx(0.5)


def test_a_run_of_one_step_has_the_highest_rate():
    assert learning_rate_at(0, 1, OptimConfig(learning_rate=1.0)) == 1.0


@pytest.mark.parametrize(
    ("name", "shape", "decayed"),
    [
        ("blocks.0.mlp.fc1.weight", (8, 4), True),
        ("patch_embed.proj.weight", (4, 3, 2, 2), True),
        ("blocks.0.mlp.fc1.bias", (8,), False),
        ("norm.weight", (4,), False),
        ("log_temperature", (), False),
        ("image.pos_embed", (1, 5, 4), False),
        ("cls_token", (1, 1, 4), False),
    ],
)
def test_only_weights_are_decayed(name, shape, decayed):
    assert is_decayed(name, nn.Parameter(torch.zeros(shape))) is decayed


def test_the_optimizer_holds_every_trainable_parameter_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2).requires_grad_(False))
    optimizer = build_optimizer(model.named_parameters(), OptimConfig(weight_decay=0.3))
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in held} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(held) == 4
    assert [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups] == [(1, 0.3), (3, 0.0)]


@pytest.mark.parametrize("field", ["learning_rate", "weight_decay", "max_grad_norm", "ema_decay", "warmup_fraction"])
def test_a_negative_setting_is_refused_by_name(field):
    with pytest.raises(ConfigError) as error:
        OptimConfig(**{field: -0.1})
    assert error.value.field == f"optim.{field}"
