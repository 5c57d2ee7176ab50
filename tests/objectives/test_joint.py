"""The sum of named objectives, and the rule for batches that cannot feed one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from elastic.batch import Batch, Passes, PassName
from elastic.errors import ConfigError
from elastic.objectives.alignment import Alignment
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.objectives.contrastive import ImageText
from elastic.objectives.joint import JointObjective, check
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.supcon import MultiPositive

DIMS = Dimensions(embed_dim=4, width=2, num_classes=3)
CAPTIONS = {"captions"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(ObjectiveConfig):
    """Returns two fixed terms, and a report that must not be summed."""

    value: float
    reads: frozenset[PassName] = frozenset()
    wants: frozenset[str] = frozenset()

    @property
    def passes(self) -> frozenset[PassName]:
        return self.reads

    @property
    def needs(self) -> frozenset[str]:
        return self.wants

    def build(self, dims: Dimensions) -> "ConstantLoss":
        return ConstantLoss(self.value)


class ConstantLoss(Objective):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        return {"a": torch.tensor(self.value), "b": torch.tensor(1.0), "a@2": torch.tensor(1000.0)}


def test_the_loss_is_the_weighted_sum_of_terms_and_reports_are_not_added(make_passes: Callable, make_batch: Callable):
    joint = JointObjective({"x": Constant(value=2.0, weight=0.5), "y": Constant(value=3.0)}, DIMS)
    loss, terms = joint(make_passes(torch.ones(2, 4)), make_batch(2))
    assert loss.item() == 0.5 * (2 + 1) + (3 + 1)
    expected = {"x/a": 2, "x/b": 1, "x/a@2": 1000, "y/a": 3, "y/b": 1, "y/a@2": 1000}
    assert {name: float(value) for name, value in terms.items()} == expected


def test_the_loss_of_one_objective_is_that_objective(make_passes: Callable, make_batch: Callable):
    features, batch = make_passes(torch.randn(4, 4)), make_batch(4, [0, 0, 1, 1])
    config = Matryoshka(inner=MultiPositive(), embed_dims=(2, 4), weight=3.0)
    loss, terms = JointObjective({"supcon": config}, DIMS)(features, batch)
    torch.testing.assert_close(loss, 3 * config.build(DIMS)(features, batch)["nce"])
    assert set(terms) == {"supcon/nce", "supcon/nce@2", "supcon/nce@4"}


def test_a_batch_that_lacks_a_field_skips_the_objective(make_passes: Callable, make_batch: Callable):
    joint = JointObjective({"supcon": MultiPositive(), "text": ImageText()}, DIMS)
    features, batch = make_passes(torch.randn(4, 4)), make_batch(4, [0, 0, 1, 1])
    loss, terms = joint(features, batch)
    assert set(terms) == {"supcon/nce"}
    torch.testing.assert_close(loss, terms["supcon/nce"])


def test_a_batch_that_feeds_nothing_is_a_programming_error(make_passes: Callable, make_batch: Callable):
    with pytest.raises(AssertionError, match="feeds no objective"):
        JointObjective({"supcon": MultiPositive()}, DIMS)(make_passes(torch.ones(2, 4)), make_batch(2))


def test_a_pass_is_asked_for_when_an_active_objective_reads_it():
    local = frozenset({"local", "teacher"})
    joint = JointObjective(
        {
            "x": Constant(value=1.0),
            "y": Constant(value=1.0, reads=local),
            "z": Constant(value=1.0, reads=frozenset({"masked"}), start=0.5),
        },
        DIMS,
    )
    assert joint.passes(frozenset({"images"}), 0.0) == local
    assert joint.passes(frozenset({"images"}), 0.5) == local | {"masked"}


def test_an_objective_starts_late_and_rises_to_its_weight(make_passes: Callable, make_batch: Callable):
    joint = JointObjective(
        {"x": Constant(value=1.0), "late": Constant(value=3.0, weight=2.0, start=0.2, ramp=0.4)}, DIMS
    )
    late = {}
    for progress in (0.1, 0.2, 0.4, 0.6, 0.9):
        passes = replace(make_passes(torch.ones(2, 4)), progress=progress)
        loss, terms = joint(passes, make_batch(2))
        late[progress] = (loss.item() - 2) / (3 + 1)
        assert ("late/a" in terms) == (progress >= 0.2)
    assert late == pytest.approx({0.1: 0, 0.2: 0, 0.4: 1, 0.6: 2, 0.9: 2})


def test_objectives_are_told_of_every_update():
    class Counting(ConstantLoss):
        decays: ClassVar[list[float]] = []

        def after_step(self, decay: float) -> None:
            self.decays.append(decay)

    joint = JointObjective({"x": Constant(value=1.0)}, DIMS)
    joint.objectives["x"] = Counting(1.0)
    joint.after_step(0.9)
    assert Counting.decays == [0.9]


def test_parameters_are_named_after_their_objective():
    joint = JointObjective({"text": Matryoshka(inner=ImageText(), embed_dims=(2, 4))}, DIMS)
    assert [name for name, _ in joint.named_parameters()] == ["objectives.text.inner.temperature.log_temperature"]


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "a@2", "2a"])
def test_names_that_would_confuse_the_log_are_refused(name: str):
    with pytest.raises(ConfigError, match="letters, digits and underscores"):
        JointObjective({name: MultiPositive()}, DIMS)


def test_check_accepts_streams_that_together_feed_everything():
    objectives = {"supcon": MultiPositive(), "text": ImageText()}
    check(objectives, {"labels"} | CAPTIONS)
    check(objectives, {"labels"}, CAPTIONS)


def test_check_names_the_objective_and_the_missing_fields():
    with pytest.raises(ConfigError, match=r"objectives.text='ImageText': needs batches with \['captions'\]"):
        check({"text": ImageText()}, {"labels"}, {"synthetic_captions"})


def test_check_wants_all_that_an_objective_needs_in_one_stream():
    both = Constant(value=1.0, wants=frozenset({"labels", "captions"}))
    with pytest.raises(ConfigError, match=r"objectives\.both"):
        check({"both": both, "supcon": MultiPositive()}, {"labels"}, {"captions", "images"})


def test_check_refuses_a_stream_that_only_waits():
    with pytest.raises(ConfigError, match="start later"):
        check({"supcon": MultiPositive(start=0.1)}, {"labels"})


def test_check_refuses_a_stream_whose_largest_submodel_would_learn_nothing():
    check({"supcon": MultiPositive(), "follow": Alignment()}, {"labels"})
    with pytest.raises(ConfigError, match="follow the largest"):
        check({"follow": Alignment()}, {"labels"})


def test_check_refuses_a_stream_that_feeds_nothing():
    with pytest.raises(ConfigError, match=r"data.streams\[1\]"):
        check({"supcon": MultiPositive()}, {"labels"}, CAPTIONS)
