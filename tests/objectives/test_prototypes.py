"""Targets, losses and centres of self-distillation, against closed forms and golden values."""

import math

import pytest
import torch

from elastic.errors import ConfigError
from elastic.objectives.prototypes import PrototypeMatching, Prototypes, entropy, sinkhorn

SMALL = Prototypes(count=3, hidden=8, bottleneck=4)


class Fixed(torch.nn.Module):
    """Gives its input as the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens


def fixed(**changes) -> PrototypeMatching:
    matching = PrototypeMatching(3, Prototypes(count=3, hidden=8, bottleneck=4, **changes))
    matching.student, matching.teacher = Fixed(), Fixed()
    return matching


def test_centred_and_sharpened_targets_have_their_golden_values():
    matching = fixed(teacher_temperature=(0.5, 0.5), student_temperature=1.0)
    matching.centre.copy_(torch.tensor([1.0, 0.0, 0.0]))
    targets, _ = matching.targets(torch.tensor([[2.0, 0.0, -1.0]]), 0.0)
    torch.testing.assert_close(targets[0], torch.tensor([0.8668, 0.1173, 0.0159]), atol=1e-4, rtol=0)
    student = torch.tensor([[1.0, 1.0, 0.0]])
    assert matching.losses(student, targets).item() == pytest.approx(0.8779, abs=1e-4)
    sharper = fixed(student_temperature=0.5)
    assert sharper.losses(student, targets).item() == pytest.approx(0.7904, abs=1e-4)


def test_the_centre_moves_after_its_use():
    matching = fixed()
    scores = torch.tensor([[2.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    before, _ = matching.targets(scores, 0.0)
    assert torch.equal(before, (scores / 0.04).softmax(dim=-1))
    assert torch.equal(matching.centre, torch.zeros(3))
    matching.after_step(0.9)
    torch.testing.assert_close(matching.centre, torch.tensor([0.1, 0.0, -0.1]))
    matching.after_step(0.9)  # nothing was seen since
    torch.testing.assert_close(matching.centre, torch.tensor([0.1, 0.0, -0.1]))


def test_the_centre_is_the_mean_over_everything_seen_in_a_step():
    matching = fixed(centre_momentum=0.0)
    matching.targets(torch.tensor([[1.0, 0.0, 0.0]]), 0.0)
    matching.targets(torch.tensor([[0.0, 3.0, 0.0], [0.0, 0.0, 0.0]]), 0.0)
    matching.after_step(0.9)
    torch.testing.assert_close(matching.centre, torch.tensor([1 / 3, 1.0, 0.0]))


def test_the_teacher_head_starts_as_the_student_and_then_follows():
    matching = PrototypeMatching(5, SMALL)
    tokens = torch.randn(7, 5)
    assert torch.equal(matching.teacher(tokens), matching.student(tokens))
    old = matching.student.prototypes.detach().clone()
    with torch.no_grad():
        matching.student.prototypes += 1.0
    matching.after_step(0.75)
    torch.testing.assert_close(matching.teacher.prototypes, old + 0.25)


def test_only_the_student_head_learns():
    matching = PrototypeMatching(5, SMALL)
    teacher_tokens, tokens = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    targets, _ = matching.targets(teacher_tokens, 0.0)
    matching.losses(tokens, targets).sum().backward()
    assert teacher_tokens.grad is None and tokens.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in matching.teacher.parameters())
    assert all(p.grad.abs().sum() > 0 for p in matching.student.parameters())


@pytest.mark.parametrize("count", [16, 1024])
def test_the_loss_starts_near_the_log_of_the_number_of_prototypes(count: int):
    torch.manual_seed(0)
    matching = PrototypeMatching(32, Prototypes(count=count))
    targets, _ = matching.targets(torch.randn(64, 32), 0.0)
    loss = matching.losses(torch.randn(64, 32), targets).mean().item()
    # Cosines of random directions in 128 dimensions vary by 0.09, which at a temperature of 0.1 adds some 0.4.
    assert math.log(count) - 0.1 < loss < math.log(count) + 0.8


def test_scores_are_cosines():
    scores = PrototypeMatching(5, SMALL).student(torch.randn(100, 5) * 50)
    assert scores.abs().max() <= 1 + 1e-6


def test_sinkhorn_has_its_golden_values():
    balanced = sinkhorn(torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]), temperature=1.0)
    expected = torch.tensor([[0.2677, 0.7323], [0.4984, 0.5016], [0.7298, 0.2702]])
    torch.testing.assert_close(balanced, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(balanced.sum(dim=0), torch.tensor([1.4960, 1.5040]), atol=1e-4, rtol=0)


def test_sinkhorn_shares_prototypes_out_at_the_sharpest_temperature():
    torch.manual_seed(0)
    balanced = sinkhorn(torch.rand(64, 8) * 2 - 1, temperature=0.04, iterations=50)
    torch.testing.assert_close(balanced.sum(dim=1), torch.ones(64))
    torch.testing.assert_close(balanced.sum(dim=0), torch.full((8,), 8.0), atol=0.05, rtol=0)


def test_health_is_1_in_equal_use_and_0_when_all_rows_meet():
    matching = fixed(teacher_temperature=(0.01, 0.01))
    _, healthy = matching.targets(torch.eye(3), 0.0)
    _, collapsed = matching.targets(torch.eye(3)[:1].expand(3, -1), 0.0)
    assert healthy["collapse@use"] == pytest.approx(1.0) and collapsed["collapse@use"] == pytest.approx(0.0, abs=1e-6)
    assert healthy["certainty@rows"] == pytest.approx(1.0)
    _, undecided = matching.targets(torch.zeros(3, 3), 0.0)
    assert undecided["certainty@rows"] == pytest.approx(0.0, abs=1e-6)


def test_the_teacher_temperature_rises_linearly():
    config = Prototypes(teacher_temperature=(0.04, 0.08), warmup=0.2)
    assert [config.teacher_temperature_at(p) for p in (0, 0.1, 0.2, 1)] == pytest.approx([0.04, 0.06, 0.08, 0.08])


def test_entropy_counts_impossible_outcomes_as_nothing():
    assert entropy(torch.tensor([0.5, 0.5, 0.0])).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "changes", [{"count": 0}, {"student_temperature": 0.0}, {"centre_momentum": 1.0}, {"teacher_temperature": (0.0, 1)}]
)
def test_impossible_settings_are_refused(changes: dict):
    with pytest.raises(ConfigError):
        Prototypes(**changes)
