import io
from dataclasses import replace

import pytest
import torch

from elastic.objectives.mim import MaskedImages
from elastic.objectives.prototypes import Prototypes
from elastic.objectives.synclr import SynClr
from elastic.objectives.tips import MaskedPatches, SelfDistillation
from elastic.train.learner import Given
from elastic.train.state import TrainState
from elastic.train.step import train_step

CPU = torch.device("cpu")


def take_steps(state: TrainState, batches) -> None:
    for batch in batches:
        train_step(state, [batch], [state.space.full, state.space.smallest], rank=0)


def test_the_same_config_gives_the_same_weights(config, dimensions):
    first, second = TrainState(config, dimensions, CPU), TrainState(config, dimensions, CPU)
    torch.rand(10)
    for mine, theirs in zip(first.learner.parameters(), second.learner.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_another_seed_gives_other_weights(config, dimensions):
    first = TrainState(config, dimensions, CPU)
    second = TrainState(replace(config, seed=1), dimensions, CPU)
    assert not torch.equal(first.learner.encoder.image.head.weight, second.learner.encoder.image.head.weight)


def test_the_average_starts_as_the_encoder_and_takes_no_gradient(config, dimensions):
    state = TrainState(config, dimensions, CPU)
    encoder = state.learner.encoder.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in state.average.state_dict().items())
    assert not any(parameter.requires_grad for parameter in state.average.parameters())
    assert not state.average.training


def test_a_reloaded_state_continues_bit_for_bit(config, dimensions, make_batch):
    batches = [make_batch(seed) for seed in range(4)]
    straight = TrainState(config, dimensions, CPU)
    take_steps(straight, batches)

    interrupted = TrainState(config, dimensions, CPU)
    take_steps(interrupted, batches[:2])
    resumed = TrainState(replace(config), dimensions, CPU)
    resumed.load_state_dict(interrupted.state_dict())
    torch.rand(7)  # whatever else used the generator must not matter
    take_steps(resumed, batches[2:])

    assert resumed.step == straight.step == 4
    for part in ("learner", "average"):
        expected, found = straight.state_dict()[part], resumed.state_dict()[part]
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.fixture
def remembering(config):
    """A run whose objectives keep something of their own from step to step."""
    small = Prototypes(count=12, hidden=8, bottleneck=4)
    objectives = {
        "crops": SelfDistillation(prototypes=small),
        "patches": MaskedPatches(prototypes=replace(small, balance="sinkhorn")),
        "synclr": SynClr(hidden=8, out=4),
        "tokens": MaskedImages(num_codes=6, fit_steps=3, target_px=4, head_dim=4),
    }
    return replace(config, objectives={**config.objectives, **objectives})


@pytest.fixture
def make_rich_batch(make_batch):
    def make(seed):
        generator = torch.Generator().manual_seed(seed + 100)
        crops = torch.randn(16, 3, 8, 8, generator=generator)
        return replace(make_batch(seed), local_images=crops, caption_ids=torch.arange(4).repeat_interleave(2))

    return make


REMEMBERED = (
    "mask_token",
    "objective.objectives.crops.matching.centre",
    "objective.objectives.crops.matching.teacher.prototypes",
    "objective.objectives.patches.matching.centre",
    "objective.objectives.patches.matching.teacher.mlp.0.weight",
    "objective.objectives.synclr.key_projector.0.weight",
    "objective.objectives.tokens.codebook.codes",
    "objective.objectives.tokens.codebook.num_fits",
    "objective.objectives.captions.inner.temperature.log_temperature",
)


def test_what_objectives_remember_is_saved_and_a_reloaded_state_continues_bit_for_bit(
    remembering, dimensions, make_rich_batch
):
    dims = replace(dimensions, num_patches=4)
    batches = [make_rich_batch(seed) for seed in range(4)]
    straight = TrainState(remembering, dims, CPU)
    fresh = {name: value.clone() for name, value in straight.state_dict()["learner"].items()}
    take_steps(straight, batches)

    interrupted = TrainState(remembering, dims, CPU)
    take_steps(interrupted, batches[:2])
    file = io.BytesIO()
    torch.save(interrupted.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert not [name for name in REMEMBERED if torch.equal(saved["learner"][name], fresh[name])]
    resumed = TrainState(remembering, dims, CPU)
    resumed.load_state_dict(saved)
    torch.rand(7)
    take_steps(resumed, batches[2:])

    expected, found = straight.state_dict(), resumed.state_dict()
    for part in ("learner", "average"):
        assert not [name for name, value in expected[part].items() if not torch.equal(value, found[part][name])]
    for number, moments in expected["optimizer"]["state"].items():
        for name, value in moments.items():
            assert torch.equal(found["optimizer"]["state"][number][name], value), (number, name)


def test_there_is_no_teacher_unless_an_objective_asks_for_one(config, dimensions, make_batch):
    state = TrainState(config, dimensions, CPU)
    _, given = state.prepare(make_batch(), 0, [state.space.full])
    assert given.teacher is None and not given.wanted


def test_features_reach_the_objectives_in_full_precision(config, dimensions, make_batch):
    state = TrainState(replace(config, precision="bf16"), dimensions, CPU)
    batch = make_batch()
    features = state.learner.encode(state.learner.encoder, batch, state.space.full)
    assert features.embedding.dtype == features.cls_token.dtype == torch.float32
    exact = TrainState(config, dimensions, CPU)
    reference = exact.learner.encode(exact.learner.encoder.eval(), batch, exact.space.full)
    features = state.learner.encode(state.learner.encoder.eval(), batch, state.space.full)
    difference = (features.embedding - reference.embedding).abs().max() / reference.embedding.abs().max()
    assert 0 < difference < 0.05  # computed in bf16, which keeps 8 bits


def test_clipping_bounds_what_the_optimizer_sees(config, dimensions, make_batch):
    clipped = replace(config, optim=replace(config.optim, max_grad_norm=1e-3))
    state = TrainState(clipped, dimensions, CPU)
    loss, _, _ = state.learner(make_batch(), state.space.full, Given())
    loss.backward()
    norm = state.update()
    assert norm > 1e-3
    first_moments = [state.optimizer.state[p]["exp_avg"] for p in state.learner.parameters()]
    after = torch.stack([m.norm() for m in first_moments]).norm() / (1 - config.optim.betas[0])
    assert after.item() == pytest.approx(1e-3, rel=1e-3)
