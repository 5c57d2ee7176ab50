"""Normalised-softmax classification, its margins, and MRL-E under Matryoshka."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions
from elastic.objectives.classification import Classification, ClassificationLoss, add_margin

DIMS = Dimensions(embed_dim=4, width=2, num_classes=3)


def loss_with(prototypes: torch.Tensor, **knobs: float | str) -> ClassificationLoss:
    classes, dim = prototypes.shape
    objective = Classification(**knobs).build(Dimensions(embed_dim=dim, width=2, num_classes=classes))
    objective.prototypes.data = prototypes
    return objective


def test_the_closed_form_of_orthogonal_prototypes(make_passes: Callable, make_batch: Callable):
    objective = loss_with(torch.eye(3), scale=16)
    loss = objective(make_passes(torch.eye(3) * 5), make_batch(3, [0, 1, 2]))
    assert set(loss) == {"ce"} and float(loss["ce"].detach()) == pytest.approx(
        math.log(1 + 2 * math.exp(-16)), abs=1e-6
    )


@pytest.mark.parametrize("classes", [10, 1000])
def test_it_starts_at_the_log_of_the_classes(classes: int, make_passes: Callable, make_batch: Callable):
    objective = loss_with(torch.ones(classes, 4))
    loss = objective(make_passes(torch.randn(5, 4)), make_batch(5, [0, 1, 2, 3, 4]))
    assert loss["ce"].item() == pytest.approx(math.log(classes), abs=1e-4)


def test_a_fresh_loss_is_close_to_the_log_of_the_classes(make_passes: Callable, make_batch: Callable):
    torch.manual_seed(0)
    objective = Classification(scale=1).build(Dimensions(embed_dim=128, width=2, num_classes=1000))
    loss = objective(make_passes(torch.randn(64, 128)), make_batch(64, list(range(64))))
    assert loss["ce"].item() == pytest.approx(math.log(1000), abs=0.05)


def test_a_cosine_margin_lowers_only_the_true_class():
    cosines = torch.tensor([[0.5, -0.2], [0.1, 0.9]])
    found = add_margin(cosines, torch.tensor([0, 1]), 0.3, "cosine")
    torch.testing.assert_close(found, torch.tensor([[0.2, -0.2], [0.1, 0.6]]))


def test_an_angle_margin_adds_to_the_angle_of_the_true_class():
    angles = torch.tensor([[0.3, 1.0], [1.2, 2.0]], dtype=torch.float64)
    found = add_margin(angles.cos(), torch.tensor([0, 1]), 0.5, "angle")
    expected = torch.tensor([[math.cos(0.8), math.cos(1.0)], [math.cos(1.2), math.cos(2.5)]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_an_angle_margin_keeps_falling_beyond_half_a_turn():
    cosines = torch.linspace(1, -1, 101, dtype=torch.float64)[:, None]
    found = add_margin(cosines, torch.zeros(101, dtype=torch.int64), 0.5, "angle").flatten()
    assert (found.diff() < 0).all() and (found < cosines.flatten()).all()


def test_an_angle_margin_has_finite_gradient_at_the_poles():
    cosines = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    add_margin(cosines, torch.zeros(2, dtype=torch.int64), 0.5, "angle").sum().backward()
    assert cosines.grad is not None and cosines.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["cosine", "angle"])
def test_a_margin_makes_the_task_harder(kind: str, make_passes: Callable, make_batch: Callable):
    features, batch = make_passes(torch.randn(6, 4)), make_batch(6, [0, 1, 2, 0, 1, 2])
    prototypes = torch.randn(3, 4)
    easy = loss_with(prototypes)(features, batch)["ce"]
    assert loss_with(prototypes, margin=0.3, margin_kind=kind)(features, batch)["ce"] > easy


def test_a_prefix_uses_the_prefix_of_the_prototypes_normalised_again(make_passes: Callable, make_batch: Callable):
    prototypes = torch.randn(3, 4, dtype=torch.float64)
    embedding = torch.randn(5, 4, dtype=torch.float64)
    batch = make_batch(5, [0, 1, 2, 0, 1])
    found = loss_with(prototypes)(make_passes(embedding).truncate(2), batch)["ce"]
    separate_head = loss_with(prototypes[:, :2].contiguous())
    torch.testing.assert_close(found, separate_head(make_passes(embedding[:, :2]), batch)["ce"])


def test_a_prefix_equals_the_full_head_on_embeddings_whose_tail_is_zero(make_passes: Callable, make_batch: Callable):
    prototypes, embedding = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    zeroed, batch = embedding.clone(), make_batch(5, [0, 1, 2, 0, 1])
    zeroed[:, 2:] = 0
    cut = prototypes.clone()
    cut[:, 2:] = 0  # the prefix of a prototype is normalised again, so its tail must not count either
    found = loss_with(prototypes)(make_passes(embedding).truncate(2), batch)["ce"]
    torch.testing.assert_close(found, loss_with(cut)(make_passes(zeroed), batch)["ce"])


def test_a_prefix_gives_the_tail_of_the_prototypes_no_gradient(make_passes: Callable, make_batch: Callable):
    objective = loss_with(torch.randn(3, 4))
    objective(make_passes(torch.randn(5, 4)).truncate(2), make_batch(5, [0, 1, 2, 0, 1]))["ce"].backward()
    grad = objective.prototypes.grad
    assert grad is not None and (grad[:, 2:] == 0).all() and (grad[:, :2] != 0).any()


def test_unlabelled_rows_do_not_count(make_passes: Callable, make_batch: Callable):
    objective, embedding = loss_with(torch.randn(3, 4)), torch.randn(4, 4)
    some = objective(make_passes(embedding), make_batch(4, [0, -1, 2, -1]))["ce"]
    only = objective(make_passes(embedding[[0, 2]]), make_batch(2, [0, 2]))["ce"]
    torch.testing.assert_close(some, only)


def test_label_smoothing_is_torchs(make_passes: Callable, make_batch: Callable):
    prototypes, embedding = torch.randn(3, 4), torch.randn(2, 4)
    found = loss_with(prototypes, label_smoothing=0.1)(make_passes(embedding), make_batch(2, [0, 2]))["ce"]
    logits = 16 * F.normalize(embedding, dim=1) @ F.normalize(prototypes, dim=1).T
    torch.testing.assert_close(found, F.cross_entropy(logits, torch.tensor([0, 2]), label_smoothing=0.1))


def test_data_without_classes_is_refused():
    with pytest.raises(ConfigError, match="needs labelled training data"):
        Classification().build(Dimensions(embed_dim=4, width=2, num_classes=0))


@pytest.mark.parametrize("wrong", [{"scale": 0}, {"margin": 2.0}, {"label_smoothing": 1.0}])
def test_knobs_outside_their_range_are_refused(wrong: dict):
    with pytest.raises(ConfigError, match="needs scale > 0"):
        Classification(**wrong)
