"""Both losses against closed forms."""

import math

import pytest
import torch

from elastic.lm.training.losses import divergence, next_token_nats


def test_equal_logits_cost_the_logarithm_of_the_vocabulary():
    tokens = torch.tensor([[0, 1, 2], [2, 2, 1]])
    assert next_token_nats(torch.zeros(2, 2, 7), tokens).item() == pytest.approx(math.log(7))


def test_each_position_is_scored_on_the_token_after_it():
    logits = torch.zeros(1, 2, 3)
    logits[0, 0, 1] = logits[0, 1, 2] = 50.0
    assert next_token_nats(logits, torch.tensor([[0, 1, 2]])).item() == pytest.approx(0.0, abs=1e-6)
    assert next_token_nats(logits, torch.tensor([[1, 2, 0]])).item() == pytest.approx(50.0)


def test_the_gradient_of_cross_entropy_is_prediction_minus_truth():
    logits = torch.tensor([[[1.0, 0.0, -1.0], [0.5, 0.5, 2.0]]], requires_grad=True)
    tokens = torch.tensor([[0, 2, 1]])
    next_token_nats(logits, tokens).backward()
    truth = torch.nn.functional.one_hot(tokens[:, 1:], 3)
    torch.testing.assert_close(logits.grad, (logits.detach().softmax(-1) - truth) / 2)


def test_the_divergence_is_the_sum_of_p_times_the_log_ratio():
    teacher, student = torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[2.0, 0.0]]])
    p, q = teacher.softmax(-1).flatten().tolist(), student.softmax(-1).flatten().tolist()
    expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert divergence(teacher, student).item() == pytest.approx(expected)
    assert divergence(teacher, teacher).item() == pytest.approx(0.0, abs=1e-7)


def test_the_gradient_of_the_divergence_is_student_minus_teacher_and_the_teacher_gets_none():
    teacher = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    student = torch.randn(1, 2, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    divergence(teacher, student).backward()
    assert teacher.grad is None
    torch.testing.assert_close(student.grad, (student.softmax(-1) - teacher.softmax(-1)).detach() / 2)
