"""Smaller submodels follow the largest."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from elastic.errors import ConfigError
from elastic.objectives.alignment import Alignment, similarity_divergence
from elastic.objectives.base import Dimensions

DIMS = Dimensions(embed_dim=2, width=2, num_classes=0)
KINDS = pytest.mark.parametrize("kind", ["cosine", "similarity"])


def test_the_cosine_is_that_of_each_pair(make_passes: Callable, make_batch: Callable):
    student, largest = torch.tensor([[1.0, 0], [0, 2.0]]), torch.tensor([[0.0, 3.0], [0.6, 0.8]])
    passes = replace(make_passes(student), largest=make_passes(largest).clean)
    terms = Alignment().build(DIMS)(passes, make_batch(2))
    assert terms["cosine"].item() == pytest.approx((1 - 0 + 1 - 0.8) / 2)


def test_the_divergence_is_that_of_neighbour_distributions():
    student = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    target = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    expected = 0.0
    for row in range(3):
        others = [index for index in range(3) if index != row]
        p = torch.softmax(torch.tensor([float(target[row] @ target[o]) for o in others]) / 0.5, 0)
        q = torch.softmax(torch.tensor([float(student[row] @ student[o]) for o in others]) / 0.5, 0)
        expected += float((p * (p / q).log()).sum()) / 3
    assert similarity_divergence(student, target, 0.5).item() == pytest.approx(expected, abs=1e-6)


@KINDS
def test_following_exactly_costs_nothing_at_any_length(kind: str, make_passes: Callable, make_batch: Callable):
    rows = torch.randn(5, 2, dtype=torch.float64)
    passes = replace(make_passes(rows * 3), largest=make_passes(rows).clean)
    (value,) = Alignment(kind=kind).build(DIMS)(passes, make_batch(5)).values()
    assert value.item() == pytest.approx(0, abs=1e-9)


@KINDS
def test_only_the_smaller_submodel_learns(kind: str, make_passes: Callable, make_batch: Callable):
    student, largest = torch.randn(4, 2, requires_grad=True), torch.randn(4, 2, requires_grad=True)
    passes = replace(make_passes(student), largest=make_passes(largest).clean.detach())
    (value,) = Alignment(kind=kind).build(DIMS)(passes, make_batch(4)).values()
    value.backward()
    assert student.grad is not None and student.grad.abs().sum() > 0 and largest.grad is None


def test_the_largest_itself_follows_nobody(make_passes: Callable, make_batch: Callable):
    assert Alignment().build(DIMS)(make_passes(torch.ones(2, 2)), make_batch(2)) == {}


def test_turning_the_whole_space_leaves_the_divergence_and_not_the_cosine():
    rows = torch.randn(6, 2, dtype=torch.float64)
    turned = rows @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    assert similarity_divergence(turned, rows, 0.1).item() == pytest.approx(0, abs=1e-9)
    assert math.isclose(float(torch.cosine_similarity(turned, rows).abs().max()), 0, abs_tol=1e-9)


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ConfigError, match="must be positive"):
        Alignment(temperature=0.0)
