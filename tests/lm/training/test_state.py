"""What is saved of a state is all that the next step depends on."""

import copy
from dataclasses import replace

import torch

from elastic.lm.training.state import MatlmState
from elastic.lm.training.step import train_step

CPU = torch.device("cpu")


def advance(state: MatlmState, tokens: torch.Tensor) -> None:
    space = state.config.decoder.space
    train_step(state, tokens, (space.full, space.smallest))


def test_equal_seeds_give_equal_weights_and_others_do_not(config):
    one, two, other = (MatlmState(replace(config, seed=seed), CPU).learner.decoder for seed in (0, 0, 1))
    first = "model.layers.0.mlp.gate_proj.weight"
    assert all(torch.equal(one.state_dict()[name], value) for name, value in two.state_dict().items())
    assert not torch.equal(one.state_dict()[first], other.state_dict()[first])


def test_a_loaded_state_goes_on_bit_for_bit(config, tokens):
    config = replace(config, optim=replace(config.optim, ema_decay=0.9))
    one, two = MatlmState(config, CPU), MatlmState(config, CPU)
    advance(one, tokens)
    two.load_state_dict(copy.deepcopy(one.state_dict()))  # as from a file
    for state in (one, two):
        advance(state, tokens.flip(0))
    assert two.step == 2
    for part in ("decoder", "average"):
        left, right = one.state_dict()[part], two.state_dict()[part]
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_without_a_decay_the_weights_themselves_are_delivered(config, tokens):
    state = MatlmState(config, CPU)
    assert state.average is state.learner.decoder


def test_averaged_weights_lie_between_the_start_and_now(config, tokens):
    state = MatlmState(replace(config, optim=replace(config.optim, ema_decay=0.9)), CPU)
    before = state.average.lm_head.weight.clone()
    advance(state, tokens)
    now = state.learner.decoder.lm_head.weight.detach()
    torch.testing.assert_close(state.average.lm_head.weight, 0.1 * before + 0.9 * now)  # decay 1/10 after one step
