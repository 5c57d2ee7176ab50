"""Gradients over parts of a batch equal those of the whole batch, contrastive losses included."""

from dataclasses import replace

import pytest
import torch

from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.train.cached import split
from elastic.train.learner import Given
from elastic.train.state import TrainState

CPU = torch.device("cpu")


@pytest.fixture
def undropped(config):
    """Without dropped paths, which parts draw differently from a whole batch."""
    vision = replace(config.model.vision, drop_path=0.0)
    return replace(config, model=replace(config.model, vision=vision))


def gradients(config, dimensions, batch, num_parts: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    state = TrainState(replace(config, micro_batches=num_parts), dimensions, CPU)
    loss, _, _ = state.learn(batch, state.space.smallest, Given(), share=0.5, sync=True)
    return loss, {name: p.grad for name, p in state.learner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("num_parts", [2, 3, 8])
def test_loss_and_gradients_are_those_of_the_whole_batch(undropped, dimensions, make_batch, num_parts):
    batch = make_batch()
    whole_loss, whole = gradients(undropped, dimensions, batch, 1)
    loss, parts = gradients(undropped, dimensions, batch, num_parts)
    torch.testing.assert_close(loss, whole_loss)
    assert parts.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_parts_without_captions_may_feed_no_objective_of_their_own(undropped, dimensions, make_batch):
    only_text = replace(undropped, objectives={"captions": Matryoshka(inner=ImageText(), embed_dims=(4, 8))})
    whole_loss, whole = gradients(only_text, dimensions, make_batch(), 1)
    loss, parts = gradients(only_text, dimensions, make_batch(), 2)
    torch.testing.assert_close(loss, whole_loss)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_averaging_the_parts_own_losses_is_something_else(undropped, dimensions, make_batch):
    only_text = replace(undropped, objectives={"captions": Matryoshka(inner=ImageText(), embed_dims=(4, 8))})
    state, batch = TrainState(only_text, dimensions, CPU), make_batch()
    whole, _, _ = state.learner(batch, state.space.full, Given())
    halves = [
        state.learner(replace(part, captions=replace(batch.captions, index=rows)), state.space.full, Given())[0]
        for part, rows in zip(split(batch, 2), batch.captions.index.split(4), strict=True)
    ]
    assert abs(whole - sum(halves) / 2) > 0.1


def test_a_part_is_seen_twice_with_the_same_dropped_paths(config, dimensions, make_batch, monkeypatch):
    state, draws = TrainState(replace(config, micro_batches=2), dimensions, CPU), []
    run = state.learner.run

    def recording(batch, submodel, given):
        draws.append(torch.get_rng_state())
        return run(batch, submodel, given)

    monkeypatch.setattr(state.learner, "run", recording)
    state.learn(make_batch(), state.space.full, Given(), share=1.0, sync=True)
    assert torch.equal(draws[0], draws[2]) and torch.equal(draws[1], draws[3])
    assert not torch.equal(draws[0], draws[1])


def test_parts_have_every_row_once_and_captions_come_first(make_batch):
    batch = replace(make_batch(), local_images=torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, 4, 4))
    parts = split(batch, 3)
    assert [len(part.images) for part in parts] == [3, 3, 2]
    assert torch.equal(torch.cat([part.row_ids for part in parts]), batch.row_ids)
    assert torch.equal(torch.cat([part.local_images for part in parts]), batch.local_images)
    assert [len(part.local_images) for part in parts] == [6, 6, 4]
    assert parts[0].captions is batch.captions and parts[1].captions is None
