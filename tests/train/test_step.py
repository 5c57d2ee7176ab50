from dataclasses import replace

import pytest
import torch

from elastic.train.learner import Given
from elastic.train.seeding import derive_seed
from elastic.train.state import TrainState
from elastic.train.step import train_step

CPU = torch.device("cpu")


def freeze(config):
    """The config of a step that computes gradients and leaves the weights where they are."""
    return replace(config, optim=replace(config.optim, learning_rate=1e-30, weight_decay=0.0, ema_decay=0.0))


def gradients(state: TrainState) -> dict[str, torch.Tensor]:
    """The gradients of the last update, recovered from AdamW's first moment after its first step."""
    share = 1 - state.config.optim.betas[0]
    parameters = dict(state.learner.named_parameters())
    return {n: state.optimizer.state[p]["exp_avg"] / share for n, p in parameters.items() if p in state.optimizer.state}


@pytest.fixture
def unclipped(config):
    frozen = freeze(config)
    return replace(frozen, optim=replace(frozen.optim, max_grad_norm=1e9))


def test_the_gradient_is_the_mean_over_submodels_and_batches(unclipped, dimensions, make_batch):
    state = TrainState(unclipped, dimensions, CPU)
    submodels = tuple(reversed(state.space.granularities.values()))
    batches = [make_batch(0), make_batch(1)]

    reference = TrainState(unclipped, dimensions, CPU)
    total = torch.zeros(())
    for number, batch in enumerate(batches):
        for submodel in submodels:
            torch.manual_seed(derive_seed(unclipped.seed, "step", 0, 0, number))
            loss, _, _ = reference.learner(batch, submodel, Given())
            total = total + loss / 8
    total.backward()

    report = train_step(state, batches, submodels, rank=0)
    assert report["loss"].item() == pytest.approx(total.item(), rel=1e-5)
    expected = dict(reference.learner.named_parameters())
    for name, gradient in gradients(state).items():
        torch.testing.assert_close(gradient, expected[name].grad, rtol=1e-4, atol=1e-6)


def test_terms_are_reported_by_objective_and_granularity(config, dimensions, make_batch):
    state = TrainState(config, dimensions, CPU)
    report = train_step(state, [make_batch()], [state.space.full, state.space.smallest], rank=0)
    assert {"supcon/nce/XL", "supcon/nce/S", "classes/ce/XL", "supcon/nce@4/S", "loss", "grad_norm"} <= report.keys()
    assert not any(value.requires_grad for value in report.values())


def test_the_loss_is_the_weighted_sum_of_the_reported_terms(config, dimensions, make_batch):
    state = TrainState(config, dimensions, CPU)
    report = train_step(state, [make_batch(0), make_batch(1)], [state.space.full], rank=0)
    terms = {name: value for name, value in report.items() if "/" in name and "@" not in name}
    weighted = sum(value * config.objectives[name.split("/")[0]].weight for name, value in terms.items())
    assert report["loss"].item() == pytest.approx(weighted.item(), rel=1e-5)


def test_units_beyond_the_submodel_get_no_gradient(unclipped, dimensions, make_batch):
    state = TrainState(unclipped, dimensions, CPU)
    train_step(state, [make_batch()], [state.space.smallest], rank=0)
    found = gradients(state)
    size = state.space.ffn_dims[0]
    weight = found["encoder.image.blocks.0.mlp.fc1.weight"]
    assert weight[:size].abs().sum() > 0
    assert weight[size:].abs().sum() == 0


def test_a_batch_without_captions_leaves_the_text_tower_alone(config, dimensions, make_batch):
    state = TrainState(config, dimensions, CPU)
    before = {name: value.clone() for name, value in state.learner.encoder.text.state_dict().items()}
    report = train_step(state, [make_batch(captions=False)], [state.space.full], rank=0)
    after = state.learner.encoder.text.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(name.startswith("captions/") for name in report)


def test_every_submodel_of_a_step_drops_the_same_paths(config, dimensions, make_batch, monkeypatch):
    state = TrainState(config, dimensions, CPU)
    draws = []
    encode = state.learner.encode

    def recording(encoder, batch, submodel):
        draws.append(torch.get_rng_state())
        return encode(encoder, batch, submodel)

    monkeypatch.setattr(state.learner, "encode", recording)
    train_step(state, [make_batch(0), make_batch(1)], [state.space.full, state.space.smallest], rank=0)
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[2], draws[3])
    assert not torch.equal(draws[0], draws[2])


def test_workers_drop_different_paths(config, dimensions, make_batch):
    losses = []
    for rank in (0, 1):
        state = TrainState(config, dimensions, CPU)
        losses.append(train_step(state, [make_batch()], [state.space.full], rank=rank)["loss"])
    assert losses[0] != losses[1]


def test_a_step_is_taken_and_counted(config, dimensions, make_batch):
    state = TrainState(config, dimensions, CPU)
    before = state.learner.encoder.image.head.weight.detach().clone()
    train_step(state, [make_batch()], [state.space.full], rank=0)
    assert state.step == 1
    assert not torch.equal(before, state.learner.encoder.image.head.weight)
    assert all(parameter.grad is None for parameter in state.learner.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_a_gpu_takes_the_same_steps(config, dimensions, make_batch, precision, tolerance):
    """Three updates with all submodels; dropped paths are drawn by another generator there, so there are none."""
    model = replace(config.model, vision=replace(config.model.vision, drop_path=0.0))
    losses = {}
    for device, arithmetic in (("cpu", "fp32"), ("cuda", precision)):
        state = TrainState(replace(config, model=model, precision=arithmetic), dimensions, torch.device(device))
        batch, submodels = make_batch().to(torch.device(device)), tuple(state.space.granularities.values())
        losses[device] = [train_step(state, [batch], submodels, rank=0)["loss"].item() for _ in range(3)]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=tolerance)
    assert losses["cuda"][2] < losses["cuda"][0]
