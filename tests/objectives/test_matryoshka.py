"""The same objective at several prefixes of one embedding."""

from collections.abc import Callable

import pytest
import torch

from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions
from elastic.objectives.classification import Classification
from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.supcon import MultiPositive

DIMS = Dimensions(embed_dim=4, width=2, num_classes=3)
IMAGES = torch.tensor([[0.6, 0, 0.8, 0], [0, 0.6, 0, 0.8]], dtype=torch.float64)
TEXTS = torch.tensor([[0.6, 0.3, 0.2, 0.1], [0.1, 0.5, 0.1, 0.6]], dtype=torch.float64)


def test_the_mean_over_widths_has_its_golden_value(make_passes: Callable, make_batch: Callable):
    objective = Matryoshka(inner=ImageText(temperature=0.1), embed_dims=(2, 4)).build(DIMS)
    batch = make_batch(2, tokens=[[5], [6]], caption_index=[0, 1])
    terms = objective(make_passes(IMAGES, TEXTS), batch)
    assert terms["nce"].item() == pytest.approx(0.006081, abs=1e-6)
    assert terms["nce@2"].item() == pytest.approx(0.004373, abs=1e-6)
    assert terms["nce@4"].item() == pytest.approx(0.007790, abs=1e-6)


def test_weights_are_relative(make_passes: Callable, make_batch: Callable):
    features, batch = make_passes(torch.randn(4, 4)), make_batch(4, [0, 0, 1, 1])
    config = Matryoshka(inner=MultiPositive(), embed_dims=(2, 4), width_weights=(6, 2))
    terms = config.build(DIMS)(features, batch)
    torch.testing.assert_close(terms["nce"], 0.75 * terms["nce@2"] + 0.25 * terms["nce@4"])


def test_only_the_mean_carries_gradient(make_passes: Callable, make_batch: Callable):
    embedding = torch.randn(4, 4, requires_grad=True)
    objective = Matryoshka(inner=MultiPositive(), embed_dims=(2, 4)).build(DIMS)
    terms = objective(make_passes(embedding), make_batch(4, [0, 0, 1, 1]))
    assert {name: value.requires_grad for name, value in terms.items()} == {"nce": True, "nce@2": False, "nce@4": False}


def test_the_full_width_alone_changes_nothing(make_passes: Callable, make_batch: Callable):
    features, batch = make_passes(torch.randn(4, 4)), make_batch(4, [0, 0, 1, 1])
    plain = MultiPositive().build(DIMS)(features, batch)["nce"]
    wrapped = Matryoshka(inner=MultiPositive(), embed_dims=(4,)).build(DIMS)(features, batch)["nce"]
    assert torch.equal(plain, wrapped)


def test_widths_share_the_parameters_of_the_inner_objective():
    objective = Matryoshka(inner=Classification(), embed_dims=(2, 4)).build(DIMS)
    assert {name: tuple(p.shape) for name, p in objective.named_parameters()} == {"inner.prototypes": (3, 4)}


def test_it_needs_what_the_inner_objective_needs():
    assert Matryoshka(inner=ImageText(), embed_dims=(4,)).needs == ImageText().needs
    assert Matryoshka(inner=ImageText(), embed_dims=(4,)).passes == ImageText().passes


@pytest.mark.parametrize("embed_dims", [(), (4, 2), (2, 2, 4), (0, 4)])
def test_widths_must_ascend(embed_dims: tuple[int, ...]):
    with pytest.raises(ConfigError, match="must be positive, ascending"):
        Matryoshka(inner=MultiPositive(), embed_dims=embed_dims)


@pytest.mark.parametrize("embed_dims", [(2,), (2, 4, 8)])
def test_widths_must_end_with_the_whole_embedding(embed_dims: tuple[int, ...]):
    with pytest.raises(ConfigError, match="must end with the full width 4"):
        Matryoshka(inner=MultiPositive(), embed_dims=embed_dims).build(DIMS)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, -1.0), (0.0, 0.0)])
def test_weights_must_fit_the_widths(weights: tuple[float, ...]):
    with pytest.raises(ConfigError, match="needs 2 non-negative numbers"):
        Matryoshka(inner=MultiPositive(), embed_dims=(2, 4), width_weights=weights)


def test_a_weight_inside_would_be_ignored_and_is_refused():
    with pytest.raises(ConfigError, match="set these of the Matryoshka objective instead"):
        Matryoshka(inner=MultiPositive(weight=2.0), embed_dims=(2, 4))
