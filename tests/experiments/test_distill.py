"""Distillation of a language model into its own submodels: what is trained, what is measured."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from elastic.model.decoder import Decoder, DecoderConfig
from experiments.matlm_smollm.distill import Distillation, distill, divergence, measure, share_of_lr

CONFIG = DecoderConfig(
    vocab_size=30, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dims=(8, 16, 32, 64), max_tokens=32
)


@pytest.fixture
def teacher() -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder


@pytest.fixture
def blocks() -> torch.Tensor:
    return torch.randint(30, (12, 16), generator=torch.Generator().manual_seed(1))


def test_divergence_is_the_sum_of_p_log_p_over_q():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    expected = 0.5 * torch.tensor(2.0).log() + 0.25 * torch.tensor(0.5).log()
    target, found = (values.log()[None, None].expand(2, 3, 3) + 5 for values in (p, q))
    torch.testing.assert_close(divergence(target, found), expected)
    assert divergence(target, target).abs() < 1e-6


def test_submodels_come_nearer_to_the_teacher_and_nothing_but_ffns_changes(teacher: Decoder, blocks: torch.Tensor):
    student, before = copy.deepcopy(teacher), copy.deepcopy(teacher.state_dict())
    smaller = list(teacher.space.granularities.values())[:-1]
    first = measure(student, teacher, smaller, blocks, torch.float32)
    steps = list(distill(student, teacher, blocks, Distillation(steps=80, lr=1e-2), torch.float32))
    last = measure(student, teacher, smaller, blocks, torch.float32)
    assert {name for name, _ in steps} == {"S", "M", "L", "XL"}
    assert all(last[submodel].acceptance > first[submodel].acceptance + 0.02 for submodel in smaller)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if ".mlp." in name}


def test_the_full_model_is_itself_and_its_nats_are_the_cross_entropy(teacher: Decoder, blocks: torch.Tensor):
    full = teacher.space.full
    found = measure(teacher, teacher, [full], blocks, torch.float32)[full]
    assert found.agreement == 1.0 and found.acceptance == pytest.approx(1.0, abs=1e-6)
    with torch.no_grad():
        logits = teacher(blocks, full)[:, :-1].log_softmax(-1)
    expected = -logits.gather(2, blocks[:, 1:, None]).mean()
    assert found.nats == pytest.approx(expected.item(), rel=1e-5)


def test_what_two_distributions_share_is_what_speculative_sampling_accepts(teacher: Decoder, blocks: torch.Tensor):
    other = Decoder(replace(CONFIG, tied=False)).eval()
    small = teacher.space.smallest
    found = measure(teacher, other, [small], blocks, torch.float32)[small]
    with torch.no_grad():
        q, p = teacher(blocks, small)[:, :-1].softmax(-1), other(blocks, other.space.full)[:, :-1].softmax(-1)
    # A draft x ~ q is accepted with probability min(1, p(x) / q(x)).
    assert found.acceptance == pytest.approx((q * (p / q).clamp(max=1)).sum(-1).mean().item(), rel=1e-5)


def test_the_learning_rate_rises_over_a_tenth_and_falls_to_nothing():
    shares = [share_of_lr(step, 100) for step in range(100)]
    assert shares[0] == pytest.approx(0.1) and max(shares) == shares[10] == 1.0 and shares[-1] < 1e-3
    assert shares[:10] == sorted(shares[:10]) and shares[10:] == sorted(shares[10:], reverse=True)
