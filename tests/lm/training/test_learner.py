"""A pass of a submodel, with and without a teacher."""

import torch

from elastic.lm.training.learner import Learner
from elastic.lm.training.losses import divergence, next_token_nats
from elastic.model.decoder import Decoder


def build(config, **changes) -> Learner:
    torch.manual_seed(0)
    return Learner(Decoder(config.decoder), **({"distillation": 0.25, "precision": "fp32", "compile": False} | changes))


def test_without_a_teacher_the_loss_is_the_texts_alone(config, tokens):
    learner, full = build(config), config.decoder.space.full
    loss, terms, logits = learner(tokens, full)
    expected = learner.decoder(tokens[:, :-1], full)
    torch.testing.assert_close(logits, expected.detach())
    torch.testing.assert_close(loss, next_token_nats(expected, tokens))
    assert set(terms) == {"nats"} and not logits.requires_grad


def test_with_a_teacher_it_is_the_weighted_sum_of_both(config, tokens):
    learner, smallest = build(config), config.decoder.space.smallest
    teacher = torch.randn(4, 16, 300, generator=torch.Generator().manual_seed(1))
    loss, terms, logits = learner(tokens, smallest, teacher)
    torch.testing.assert_close(terms["kl"], divergence(teacher, logits))
    torch.testing.assert_close(loss, 0.75 * next_token_nats(logits, tokens) + 0.25 * terms["kl"])


def test_a_small_submodel_leaves_what_is_beyond_it_without_gradient(config, tokens):
    learner = build(config)
    learner(tokens, config.decoder.space.smallest)[0].backward()
    gradient = learner.decoder.model.layers[0].mlp.gate_proj.weight.grad
    assert gradient[:8].abs().sum() > 0 and gradient[8:].abs().sum() == 0


def test_bf16_changes_the_arithmetic_of_the_decoder_and_neither_weights_nor_losses(config, tokens):
    learner, full = build(config, precision="bf16"), config.decoder.space.full
    loss, _, logits = learner(tokens, full)
    assert logits.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert {parameter.dtype for parameter in learner.parameters()} == {torch.float32}
    torch.testing.assert_close(loss, build(config)(tokens, full)[0], rtol=0, atol=0.02)


def test_each_submodel_has_a_compiled_pass_of_its_own_made_once(config, tokens, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda run, dynamic: compiled.append(run) or run)
    learner, space = build(config, compile=True), config.decoder.space
    found = [learner(tokens, submodel)[0] for submodel in (space.full, space.smallest, space.full)]
    assert len(compiled) == 2 and found[0] == found[2] != found[1]
    torch.testing.assert_close(found[1], build(config)(tokens, space.smallest)[0])
