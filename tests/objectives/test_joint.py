"""The sum of named objectives, and the rule for batches that cannot feed one."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from elastic.batch import Batch, Features
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.objectives.contrastive import ImageText
from elastic.objectives.joint import JointObjective, check
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.supcon import MultiPositive

DIMS = Dimensions(embed_dim=4, width=2, num_classes=3)
CAPTIONS = {"tokens", "token_mask", "caption_index"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(ObjectiveConfig):
    """Returns two fixed terms, and a report that must not be summed."""

    value: float
    teacher: bool = False

    @property
    def needs_teacher(self) -> bool:
        return self.teacher

    def build(self, dims: Dimensions) -> "ConstantLoss":
        return ConstantLoss(self.value)


class ConstantLoss(Objective):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, student: Features, batch: Batch, teacher: Features | None) -> Terms:
        return {"a": torch.tensor(self.value), "b": torch.tensor(1.0), "a@2": torch.tensor(1000.0)}


def test_the_loss_is_the_weighted_sum_of_terms_and_reports_are_not_added(make_features: Callable, make_batch: Callable):
    joint = JointObjective({"x": Constant(value=2.0, weight=0.5), "y": Constant(value=3.0)}, DIMS)
    loss, terms = joint(make_features(torch.ones(2, 4)), make_batch(2), None)
    assert loss.item() == 0.5 * (2 + 1) + (3 + 1)
    expected = {"x/a": 2, "x/b": 1, "x/a@2": 1000, "y/a": 3, "y/b": 1, "y/a@2": 1000}
    assert {name: float(value) for name, value in terms.items()} == expected


def test_the_loss_of_one_objective_is_that_objective(make_features: Callable, make_batch: Callable):
    features, batch = make_features(torch.randn(4, 4)), make_batch(4, [0, 0, 1, 1])
    config = Matryoshka(inner=MultiPositive(), embed_dims=(2, 4), weight=3.0)
    loss, terms = JointObjective({"supcon": config}, DIMS)(features, batch, None)
    torch.testing.assert_close(loss, 3 * config.build(DIMS)(features, batch, None)["nce"])
    assert set(terms) == {"supcon/nce", "supcon/nce@2", "supcon/nce@4"}


def test_a_batch_that_lacks_a_field_skips_the_objective(make_features: Callable, make_batch: Callable):
    joint = JointObjective({"supcon": MultiPositive(), "text": ImageText()}, DIMS)
    features, batch = make_features(torch.randn(4, 4)), make_batch(4, [0, 0, 1, 1])
    loss, terms = joint(features, batch, None)
    assert set(terms) == {"supcon/nce"}
    torch.testing.assert_close(loss, terms["supcon/nce"])


def test_a_batch_that_feeds_nothing_is_a_programming_error(make_features: Callable, make_batch: Callable):
    with pytest.raises(AssertionError, match="feeds no objective"):
        JointObjective({"supcon": MultiPositive()}, DIMS)(make_features(torch.ones(2, 4)), make_batch(2), None)


def test_a_teacher_is_asked_for_when_one_objective_needs_it(make_features: Callable, make_batch: Callable):
    assert not JointObjective({"x": Constant(value=1.0)}, DIMS).needs_teacher
    joint = JointObjective({"x": Constant(value=1.0), "y": Constant(value=1.0, teacher=True)}, DIMS)
    assert joint.needs_teacher
    with pytest.raises(AssertionError, match="y needs a teacher"):
        joint(make_features(torch.ones(2, 4)), make_batch(2), None)


def test_parameters_are_named_after_their_objective():
    joint = JointObjective({"text": Matryoshka(inner=ImageText(), embed_dims=(2, 4))}, DIMS)
    assert [name for name, _ in joint.named_parameters()] == ["objectives.text.inner.log_temperature"]


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "a@2", "2a"])
def test_names_that_would_confuse_the_log_are_refused(name: str):
    with pytest.raises(ConfigError, match="letters, digits and underscores"):
        JointObjective({name: MultiPositive()}, DIMS)


def test_check_accepts_streams_that_together_feed_everything():
    objectives = {"supcon": MultiPositive(), "text": ImageText()}
    check(objectives, {"labels"} | CAPTIONS)
    check(objectives, {"labels"}, CAPTIONS)


def test_check_names_the_objective_and_the_missing_fields():
    with pytest.raises(ConfigError, match=r"objectives.text='ImageText': needs batches with \['caption_index'\]"):
        check({"text": ImageText()}, {"labels"}, {"tokens", "token_mask"})


def test_check_wants_all_that_an_objective_needs_in_one_stream():
    with pytest.raises(ConfigError, match=r"objectives\.text"):
        check({"text": ImageText(), "supcon": MultiPositive()}, {"tokens", "labels"}, {"token_mask", "caption_index"})


def test_check_refuses_a_stream_that_feeds_nothing():
    with pytest.raises(ConfigError, match=r"data.streams\[1\]"):
        check({"supcon": MultiPositive()}, {"labels"}, CAPTIONS)
