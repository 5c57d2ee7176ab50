import math

import pytest
import torch
from torch import nn

from elastic.errors import ConfigError
from elastic.train.optim import (
    OptimConfig,
    build_optimizer,
    encoder_rate_at,
    is_decayed,
    is_held_back,
    learning_rate_at,
    set_learning_rates,
)


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
        ("objectives.udon.inner.teacher_bias", (12, 256), False),
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


@pytest.mark.parametrize(
    ("name", "held_back"),
    [
        ("encoder.image.blocks.0.mlp.fc1.weight", True),
        ("encoder.image.norm.weight", True),
        ("encoder.image.head.weight", False),
        ("encoder.text.blocks.0.mlp.fc1.weight", False),
        ("objective.objectives.udon.teacher_weight", False),
        ("mask_token", False),
    ],
)
def test_the_image_tower_below_its_head_is_held_back(name, held_back):
    assert is_held_back(name) is held_back


def test_the_image_tower_stands_still_then_learns_at_its_factor():
    config = OptimConfig(encoder_rate=0.01, freeze_encoder=0.2)
    assert [encoder_rate_at(progress, config) for progress in (0.0, 0.19, 0.2, 1.0)] == [0.0, 0.0, 0.01, 0.01]


class Parts(nn.Module):
    """Parameters named as a learner's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.ModuleDict({"image": nn.ModuleDict({"block": nn.Linear(3, 3), "head": nn.Linear(3, 3)})})

    def take_steps(self, optimizer: torch.optim.Optimizer, config: OptimConfig, steps: range) -> None:
        for step in steps:
            set_learning_rates(optimizer, step, 10, config)
            torch.stack([(parameter - 1).square().sum() for parameter in self.parameters()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def test_what_is_held_back_has_groups_of_its_own_and_keeps_its_decay():
    parts = Parts()
    names = {id(parameter): name for name, parameter in parts.named_parameters()}
    optimizer = build_optimizer(parts.named_parameters(), OptimConfig(encoder_rate=0.1, weight_decay=0.3))
    found = [
        ([names[id(parameter)] for parameter in group["params"]], group["weight_decay"], group["held_back"])
        for group in optimizer.param_groups
    ]
    assert found == [
        (["encoder.image.block.weight"], 0.3, True),
        (["encoder.image.block.bias"], 0.0, True),
        (["encoder.image.head.weight"], 0.3, False),
        (["encoder.image.head.bias"], 0.0, False),
    ]


def test_the_factor_scales_what_an_update_moves():
    moved = []
    for factor in (1.0, 0.25):
        parts, config = Parts(), OptimConfig(encoder_rate=factor, weight_decay=0.0)
        before = {name: parameter.clone() for name, parameter in parts.named_parameters()}
        optimizer = build_optimizer(parts.named_parameters(), config)
        parts.take_steps(optimizer, config, range(5, 6))
        moved.append({name: (parameter - before[name]).detach() for name, parameter in parts.named_parameters()})
    for name in moved[0]:
        factor = 0.25 if "block" in name else 1.0
        torch.testing.assert_close(moved[1][name], factor * moved[0][name], rtol=1e-3, atol=1e-8)


def test_what_is_frozen_stays_bit_identical_while_its_moments_accumulate():
    parts, config = Parts(), OptimConfig(freeze_encoder=0.5, weight_decay=0.3)
    before = {name: parameter.clone() for name, parameter in parts.named_parameters()}
    optimizer = build_optimizer(parts.named_parameters(), config)
    parts.take_steps(optimizer, config, range(5))
    for name, parameter in parts.named_parameters():
        assert torch.equal(parameter, before[name]) is ("block" in name), name
        assert (optimizer.state[parameter]["exp_avg"] != 0).all()
    parts.take_steps(optimizer, config, range(5, 6))
    assert not any(torch.equal(parameter, before[name]) for name, parameter in parts.named_parameters())


@pytest.mark.parametrize(
    "field", ["learning_rate", "weight_decay", "max_grad_norm", "ema_decay", "warmup_fraction", "encoder_rate"]
)
def test_a_negative_setting_is_refused_by_name(field):
    with pytest.raises(ConfigError) as error:
        OptimConfig(**{field: -0.1})
    assert error.value.field == f"optim.{field}"
