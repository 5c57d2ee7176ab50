"""The step against separate losses, against plain training of transformers' Llama, and on two workers."""

from dataclasses import replace

import pytest
import torch
import transformers

from elastic.lm.training.losses import next_token_nats
from elastic.lm.training.state import MatlmState
from elastic.lm.training.step import train_step
from elastic.train.optim import learning_rate_at
from elastic.train.submodels import SubmodelSampler, SubmodelSampling

from ...workers import WORLD_SIZE

CPU = torch.device("cpu")


def without_distillation(config):
    return replace(config, distillation=0.0, submodels=SubmodelSampling(policy="all"))


def take_steps(config, tokens):
    """The losses of three steps, and the weights after them."""
    state = MatlmState(config, CPU)
    sampler = SubmodelSampler(config.decoder.space, config.submodels, config.seed)
    losses = [train_step(state, tokens, sampler.at(step))["loss"].item() for step in range(3)]
    return losses, state.learner.decoder.state_dict()


def take_part(rank, config, tokens):
    """What one of two workers does, with its half of the batch."""
    return take_steps(config, tokens.chunk(WORLD_SIZE)[rank])


def test_the_joint_loss_and_its_gradient_are_the_means_of_separate_ones(config, tokens, monkeypatch):
    state = MatlmState(without_distillation(config), CPU)
    submodels = tuple(reversed(config.decoder.space.granularities.values()))
    reference = MatlmState(without_distillation(config), CPU).learner.decoder
    separate = [next_token_nats(reference(tokens[:, :-1], submodel), tokens) for submodel in submodels]
    torch.stack(separate).mean().backward()
    gradients = {}
    monkeypatch.setattr(
        state.optimizer,
        "step",
        lambda: gradients.update({n: p.grad.clone() for n, p in state.learner.decoder.named_parameters()}),
    )
    report = train_step(state, tokens, submodels)
    torch.testing.assert_close(report["loss"], torch.stack(separate).mean().detach())
    for name, loss in zip(("XL", "L", "M", "S"), separate, strict=True):
        torch.testing.assert_close(report[f"train/nats/{name}"], loss.detach())
    scale = min(1.0, state.config.optim.max_grad_norm / report["grad_norm"].item())  # clipped
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients[name], scale * parameter.grad, rtol=1e-4, atol=1e-7)


def test_smaller_submodels_learn_from_the_largest_of_the_same_step(config, tokens):
    space = config.decoder.space
    report = train_step(MatlmState(config, CPU), tokens, (space.full, space.smallest))
    assert {"train/nats/XL", "train/nats/S", "train/kl/S"} < report.keys() and "train/kl/XL" not in report
    expected = (report["train/nats/XL"] + 0.5 * report["train/nats/S"] + 0.5 * report["train/kl/S"]) / 2
    torch.testing.assert_close(report["loss"], expected)


def test_training_the_largest_alone_is_training_transformers_llama(config, tokens):
    config = replace(without_distillation(config), submodels=SubmodelSampling(policy="anchored", k=0))
    state, sizes, optim = MatlmState(config, CPU), config.decoder, config.optim
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.depth,
            num_attention_heads=sizes.num_heads,
            num_key_value_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            intermediate_size=sizes.ffn_dims[-1],
            max_position_embeddings=sizes.max_tokens,
            rms_norm_eps=sizes.norm_eps,
            rope_parameters={"rope_theta": sizes.rope_theta, "rope_type": "default"},
            tie_word_embeddings=True,
        )
    )
    llama.load_state_dict(state.learner.decoder.state_dict())
    groups = [
        {"params": [p for p in llama.parameters() if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in llama.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=optim.learning_rate, betas=optim.betas)
    for step in range(3):
        blocks = tokens.roll(step, 1)
        report = train_step(state, blocks, (sizes.space.full,))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config.steps, optim)
        optimizer.zero_grad()
        loss = next_token_nats(llama(blocks[:, :-1]).logits, blocks)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), optim.max_grad_norm)
        optimizer.step()
        torch.testing.assert_close(report["loss"], loss.detach(), rtol=1e-5, atol=1e-6)
    mine = state.learner.decoder.state_dict()
    for name, value in llama.state_dict().items():
        torch.testing.assert_close(mine[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


@pytest.mark.filterwarnings("ignore:find_unused_parameters=True:UserWarning")
def test_two_workers_train_as_one_does_on_submodels_that_all_draw_alike(config, tokens, two_workers):
    alone, weights = take_steps(config, tokens)
    both = two_workers.run(take_part, config, tokens)
    means = [sum(losses) / WORLD_SIZE for losses in zip(*(losses for losses, _ in both), strict=True)]
    assert means == pytest.approx(alone, rel=1e-5)
    for _, found in both:
        for name, value in weights.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
