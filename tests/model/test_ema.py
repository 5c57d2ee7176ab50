import pytest
import torch
from torch import nn

from elastic.model.ema import decay_at, update_average


def test_the_decay_starts_short_and_reaches_its_setting():
    assert decay_at(0, 0.998) == pytest.approx(0.1)
    assert decay_at(10, 0.998) == pytest.approx(11 / 20)
    assert decay_at(10_000, 0.998) == 0.998


def test_every_parameter_moves_by_the_decay_and_buffers_are_copied():
    average, source = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.constant_(average.weight, 2.0)
    nn.init.constant_(source.weight, 4.0)
    source.running_mean.fill_(7.0)
    update_average(average, source, 0.75)
    assert torch.equal(average.weight, torch.full((3,), 2.5))
    assert torch.equal(average.running_mean, torch.full((3,), 7.0))


def test_the_source_is_left_alone_and_no_gradient_is_recorded():
    average, source = nn.Linear(2, 2), nn.Linear(2, 2)
    before = source.weight.detach().clone()
    update_average(average, source, 0.5)
    assert torch.equal(source.weight, before)
    assert average.weight.grad_fn is None
