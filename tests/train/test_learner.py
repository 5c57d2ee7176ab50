"""Each pass is made once, only where an objective asks for it, and on the right images."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch

from elastic.batch import Batch, Passes, PassName
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.train.state import TrainState

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe(ObjectiveConfig):
    """Asks for passes and keeps what it was given."""

    reads: frozenset[PassName]

    @property
    def passes(self) -> frozenset[PassName]:
        return self.reads

    def build(self, dims: Dimensions) -> "ProbeLoss":
        return ProbeLoss()


class ProbeLoss(Objective):
    def forward(self, passes: Passes, batch: Batch) -> Terms:
        self.seen = passes
        present = (passes.clean, passes.masked, passes.local)
        return {"sum": sum(features.patch_tokens.sum() for features in present if features is not None)}


@pytest.fixture
def probe(config, dimensions, make_batch) -> Callable[..., tuple[TrainState, Passes, Batch]]:
    def run(*reads: PassName, **changes) -> tuple[TrainState, Passes, Batch]:
        changed = replace(config, objectives={"probe": Probe(reads=frozenset(reads))}, **changes)
        state = TrainState(changed, dimensions, CPU)
        planned = replace(make_batch(), local_images=torch.randn(16, 3, 8, 8))
        batch, given = state.prepare(planned, 0, [state.space.full])
        state.learner(batch, state.space.full, given)
        return state, state.learner.objective.objectives["probe"].seen, batch

    return run


def test_without_a_request_there_is_only_the_clean_pass(probe):
    state, passes, batch = probe()
    assert passes.masked is passes.local is passes.teacher is passes.largest is batch.mask is None
    assert state.learner.mask_token is None


def test_every_requested_pass_is_there(probe):
    _, passes, batch = probe("masked", "local", "teacher")
    assert len(passes.masked.embedding) == len(passes.teacher.embedding) == 8
    assert passes.local.embedding.shape[0] == 16 and passes.local.patch_tokens.shape[1] == 1
    assert passes.local.text_embedding is passes.masked.text_embedding is None
    assert batch.mask.sum(dim=1).tolist() == [3] * 8


def test_the_teacher_is_the_averaged_encoder_without_gradient(probe):
    state, passes, batch = probe("teacher")
    expected = state.average(replace(batch, captions=None), state.space.full)
    torch.testing.assert_close(passes.teacher.patch_tokens, expected.patch_tokens)
    assert not passes.teacher.patch_tokens.requires_grad


def test_a_student_that_teaches_itself_needs_no_pass_of_its_own_at_the_full_submodel(probe, config):
    vision = replace(config.model.vision, drop_path=0.0)
    state, passes, batch = probe("teacher", teacher="student", model=replace(config.model, vision=vision))
    assert state.prepare(batch, 0, [state.space.full])[1].teacher is None
    assert torch.equal(passes.teacher.cls_token, passes.clean.cls_token)
    assert not passes.teacher.cls_token.requires_grad and passes.clean.cls_token.requires_grad


def test_a_small_student_is_taught_by_the_full_one(probe):
    state, _, batch = probe("teacher", teacher="student")
    taught = state.prepare(batch, 0, [state.space.smallest])[1].teacher
    full = state.learner.encoder.eval()(replace(batch, captions=None), state.space.full)
    torch.testing.assert_close(taught.cls_token, full.cls_token)


def test_the_mask_token_learns_from_the_masked_pass(probe):
    state, passes, _ = probe("masked")
    passes.masked.patch_tokens.square().sum().backward()
    assert state.learner.mask_token.grad.abs().sum() > 0


def test_masks_do_not_depend_on_the_number_of_workers(config, dimensions, make_batch, monkeypatch):
    masked = replace(config, objectives={"probe": Probe(reads=frozenset({"masked"}))})
    state, batch = TrainState(masked, dimensions, CPU), make_batch()
    alone = state.prepare(batch, 0, [state.space.full])[0].mask
    halves = [
        replace(batch, images=half, row_ids=rows, domains=rows, labels=rows, captions=None)
        for half, rows in zip(batch.images.split(4), batch.row_ids.split(4), strict=True)
    ]
    monkeypatch.setattr("elastic.train.state.num_workers", lambda: 2)
    parts = []
    for number, half in enumerate(halves):
        monkeypatch.setattr("elastic.train.state.rank", lambda number=number: number)
        parts.append(state.prepare(half, 0, [state.space.full])[0].mask)
    assert torch.equal(torch.cat(parts), alone)
