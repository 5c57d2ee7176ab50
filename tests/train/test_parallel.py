"""Two workers with half of every batch each train what one worker trains on whole batches, under DDP and FSDP2.

The two workers run everything once for all tests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from elastic.batch import NO_LABEL, Batch, Captions
from elastic.data.config import ClassBalanced, DataConfig, StreamConfig
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.objectives.alignment import Alignment
from elastic.objectives.base import Dimensions, ObjectiveConfig
from elastic.objectives.classification import Classification
from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.mim import MaskedImages
from elastic.objectives.prototypes import Prototypes
from elastic.objectives.supcon import MultiPositive
from elastic.objectives.synclr import SynClr
from elastic.objectives.tips import DualImageText, MaskedPatches, SelfDistillation
from elastic.objectives.udon import Udon
from elastic.train.config import TrainConfig
from elastic.train.optim import OptimConfig
from elastic.train.parallel import load_whole_state, whole_state
from elastic.train.state import TrainState
from elastic.train.step import train_step
from elastic.train.submodels import SubmodelSampling

from ..workers import WORLD_SIZE, TwoWorkers

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NUM_STEPS = 2
NUM_IMAGES, NUM_CLASSES, NUM_CROPS = 8, 4, 2
WIDTHS = (4, 8)
DIMENSIONS = Dimensions(
    embed_dim=8, width=16, num_classes=NUM_CLASSES, class_domains=(0,) * NUM_CLASSES, num_patches=16
)
MODES = ("ddp", "fsdp")
ATOL = 1e-6
"""Of weights that moved by a few thousandths."""

CENTRE = Prototypes(count=12, hidden=8, bottleneck=4)
SINKHORN = replace(CENTRE, balance="sinkhorn")
OBJECTIVES: Mapping[str, ObjectiveConfig] = {
    "supcon": Matryoshka(inner=MultiPositive(), embed_dims=WIDTHS),
    "classes": Matryoshka(inner=Classification(margin=0.2), embed_dims=WIDTHS, weight=0.5),
    "captions": Matryoshka(inner=ImageText(), embed_dims=WIDTHS),
    "dual": Matryoshka(inner=DualImageText(), embed_dims=WIDTHS),
    "crops": SelfDistillation(prototypes=CENTRE),
    "crops_sinkhorn": SelfDistillation(prototypes=SINKHORN),
    "patches": MaskedPatches(prototypes=CENTRE),
    "patches_sinkhorn": MaskedPatches(prototypes=SINKHORN),
    "every_patch": MaskedPatches(prototypes=CENTRE, every_patch=True, weight=2.0),
    "alignment": Alignment(),
    "similarity": Alignment(kind="similarity"),
    "udon": Matryoshka(inner=Udon(teacher_dim=8, block=3), embed_dims=WIDTHS),
    "synclr": SynClr(token="second", locals=True, hidden=8, out=4),
    "tokens": MaskedImages(weight=10.0, num_codes=6, fit_steps=1, target_px=4, head_dim=4),
    "pixels": MaskedImages(weight=10.0, target="pixels", positions="all", target_px=4, head_dim=4),
}
"""Every objective, each of which is tried alone. A new one is one more line."""
NOT_ALONE = {"alignment", "similarity"}
"""Objectives that ask nothing of the largest submodel, so something else has to."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Steps that every number of workers takes alike."""

    config: TrainConfig
    submodels: tuple[str, ...] = ("XL", "S")
    captions: tuple[bool, ...] = (True,) * NUM_STEPS
    """Which of the steps have captions."""


def make_config(*objectives: str, **changes: Any) -> TrainConfig:
    """A tiny run of these objectives that drops no paths, because workers drop different ones."""
    vision = VisionConfig(image_size=16, patch_size=4, width=16, depth=2, num_heads=2, num_cls_tokens=2, drop_path=0.0)
    defaults = TrainConfig(
        name="tiny",
        model=EncoderConfig(
            vision=vision,
            text=TextConfig(vocab_size=32, max_tokens=6, width=8, depth=1, num_heads=2),
            embed_dims=WIDTHS,
        ),
        data=DataConfig(
            streams=(StreamConfig(sampling=ClassBalanced(classes_per_batch=4, images_per_class=2)),),
            image_size=16,
            canvas_size=16,
        ),
        objectives={name: OBJECTIVES[name] for name in objectives},
        steps=NUM_STEPS,
        submodels=SubmodelSampling(policy="sandwich"),  # what `Alignment` insists on; the tests choose their own
        # At a constant rate, and short enough that no difference is clipped away.
        optim=OptimConfig(learning_rate=0.1, final_fraction=1.0, warmup_fraction=0.0, ema_decay=0.9),
    )
    return replace(defaults, **changes)


LATER = replace(MaskedPatches(prototypes=CENTRE), start=0.5)
SCENARIOS: Mapping[str, Scenario] = {
    **{
        name: Scenario(config=make_config(*(("supcon", name) if name in NOT_ALONE else (name,)))) for name in OBJECTIVES
    },
    "everything": Scenario(config=make_config(*OBJECTIVES), submodels=("XL", "M", "S")),
    "everything accumulated": Scenario(config=make_config(*OBJECTIVES, accumulate=2)),
    "everything in parts": Scenario(config=make_config(*OBJECTIVES, micro_batches=2)),
    "own teacher": Scenario(config=make_config("captions", "crops", "patches", teacher="student")),
    "own teacher, small": Scenario(config=make_config("captions", "crops", teacher="student"), submodels=("S",)),
    "objective that starts later": Scenario(
        config=make_config("supcon", objectives={"supcon": OBJECTIVES["supcon"], "later": LATER})
    ),
    "captions that are not always there": Scenario(config=make_config("supcon", "captions"), captions=(False, True)),
}

TRIED = [("ddp", name) for name in SCENARIOS] + [("fsdp", name) for name in SCENARIOS if name not in OBJECTIVES]
"""What is run: how gradients are shared does not depend on the objective, so FSDP sees each among the others only."""


def make_batch(seed: int, *, captions: bool) -> Batch:
    """All rows of a step: some without label or caption, and one caption of the first half again in the second."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 32, (4, 6), generator=generator)
    tokens[3] = tokens[0]
    tokens[1, 4:] = 0
    index = torch.tensor([0, 0, 1, 1, 2, 2, 3, NO_LABEL])
    text = Captions(tokens=tokens, mask=tokens != 0, index=index)
    return Batch(
        images=torch.randn(NUM_IMAGES, 3, 16, 16, generator=generator),
        row_ids=torch.arange(NUM_IMAGES),
        domains=torch.zeros(NUM_IMAGES, dtype=torch.int64),
        labels=torch.tensor([0, 0, 1, 1, 1, 2, 3, NO_LABEL]),
        caption_ids=torch.tensor([5, 5, 5, 6, 6, 6, 5, NO_LABEL]),
        captions=text if captions else None,
        synthetic_captions=replace(text, tokens=tokens.roll(1, dims=1), mask=text.mask.roll(1, dims=1)),
        local_images=torch.randn(NUM_CROPS * NUM_IMAGES, 3, 8, 8, generator=generator),
    )


def half(batch: Batch, rank: int) -> Batch:
    """One worker's rows, and its captions, two of the four."""
    rows = slice(rank * NUM_IMAGES // 2, (rank + 1) * NUM_IMAGES // 2)
    crops = slice(rows.start * NUM_CROPS, rows.stop * NUM_CROPS)
    texts = slice(rank * 2, rank * 2 + 2)
    names = ("images", "row_ids", "domains", "labels", "caption_ids")

    def cut(captions: Captions | None) -> Captions | None:
        if captions is None:
            return None
        index = captions.index[rows]
        own = torch.where(index == NO_LABEL, NO_LABEL, index - texts.start)
        return Captions(tokens=captions.tokens[texts], mask=captions.mask[texts], index=own)

    return replace(
        batch,
        **{name: getattr(batch, name)[rows] for name in names},
        captions=cut(batch.captions),
        synthetic_captions=cut(batch.synthetic_captions),
        local_images=batch.local_images[crops],
    )


def take_steps(state: TrainState, scenario: Scenario, rank: int | None, steps: Sequence[int]) -> list[dict[str, float]]:
    """What these steps reported; one worker's half of every batch, or with `None` the whole of it."""
    submodels = [state.space.granularities[name] for name in scenario.submodels]
    reports = []
    for step in steps:
        seeds = range(step * 10, step * 10 + state.config.accumulate)
        batches = [make_batch(seed, captions=scenario.captions[step]) for seed in seeds]
        batches = batches if rank is None else [half(batch, rank) for batch in batches]
        report = train_step(state, batches, submodels, rank=rank or 0)
        reports.append({name: float(value) for name, value in report.items()})
    return reports


def run(scenario: Scenario, rank: int | None) -> dict[str, Any]:
    """Everything that the scenario's steps left behind.

    With plain gradient descent: AdamW turns a gradient of rounding errors, such as that of a key's bias, into a step.
    """
    state = TrainState(scenario.config, DIMENSIONS, CPU)
    widen_heads(state)
    state.optimizer = torch.optim.SGD([{"params": list(state.learner.parameters()), "held_back": False}])
    reports = take_steps(state, scenario, rank, range(NUM_STEPS))
    whole = state.state_dict()
    return {"reports": reports, "learner": whole["learner"], "average": whole["average"]}


@torch.no_grad()
def widen_heads(state: TrainState) -> None:
    """Heads of eight units start with outputs so near zero that all of their gradient is that of the last bias."""
    for name, parameter in state.learner.named_parameters():
        if ".matching." in name:
            parameter.mul_(20)


@cache
def alone(name: str) -> dict[str, Any]:
    """The scenario on one worker, in one piece."""
    scenario = SCENARIOS[name]
    return run(replace(scenario, config=replace(scenario.config, micro_batches=1)), None)


RESUMED = Scenario(
    config=make_config(
        "captions",
        "crops",
        "synclr",
        optim=OptimConfig(learning_rate=1e-2, warmup_fraction=0.0, max_grad_norm=1e9, ema_decay=0.9),
    ),
    submodels=("S",),
)
"""With AdamW. With one submodel and nothing to clip, two workers' sums have one order under both kinds."""


def resume(rank: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Two steps under each kind, and the second under the other one, from what the first would have saved."""
    found: dict[str, dict[str, Any]] = {}
    for first, second in (MODES, MODES[::-1]):
        straight = TrainState(replace(RESUMED.config, parallel=first), DIMENSIONS, CPU)
        take_steps(straight, RESUMED, rank, [0])
        saved = straight.state_dict()
        if rank == 0:
            torch.save(saved, folder / f"{first}.pt")
        dist.barrier()
        take_steps(straight, RESUMED, rank, [1])
        resumed = TrainState(replace(RESUMED.config, parallel=second), DIMENSIONS, CPU)
        resumed.load_state_dict(torch.load(folder / f"{first}.pt", weights_only=True))
        take_steps(resumed, RESUMED, rank, [1])
        found |= {first: straight.state_dict(), f"{first} then {second}": resumed.state_dict()}
    return found


def look_at_parts(rank: int) -> dict[str, Any]:
    """What a worker holds under FSDP between steps and while it runs a block."""
    config = make_config("supcon", "captions", parallel="fsdp")
    state = TrainState(config, DIMENSIONS, CPU)
    blocks, seen = state.learner.encoder.blocks, []

    def look(*_: Any) -> None:
        seen.append([isinstance(block.norm1.weight, DTensor) for block in blocks])

    blocks[1].norm1.register_forward_hook(look)
    take_steps(state, Scenario(config=config), rank, range(1))
    held = [*state.learner.parameters(), *state.average.parameters()]
    held += [moment for moments in state.optimizer.state.values() for moment in moments.values() if moment.ndim]
    average = whole_state(state.average)
    whole = state.whole_average()
    return {
        "all are parts": all(isinstance(tensor, DTensor) for tensor in held),
        "share held": sum(tensor.to_local().numel() for tensor in held) / sum(tensor.numel() for tensor in held),
        "blocks that are parts inside the second": seen[0],
        "average": average,
        "whole average": whole.state_dict() if rank == 0 else {},
    }


def work(rank: int, folder: Path) -> dict[str, Any]:
    """What one worker finds."""
    found: dict[str, Any] = {"parts": look_at_parts(rank), "resumed": resume(rank, folder)}
    for mode, name in TRIED:
        scenario = SCENARIOS[name]
        found[f"{mode} {name}"] = run(replace(scenario, config=replace(scenario.config, parallel=mode)), rank)
    return found


@pytest.fixture(scope="module")
def workers(two_workers: TwoWorkers, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    return two_workers.run(work, tmp_path_factory.mktemp("saved"))


def compare(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str, atol: float, rtol: float = 0.0
) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{what}, {name}: {text}"
        )


@pytest.mark.parametrize(("mode", "name"), TRIED)
def test_two_workers_train_what_one_trains(workers, mode, name):
    first, second = (worker[f"{mode} {name}"] for worker in workers)
    expected = alone(name)
    for step, whole in enumerate(expected["reports"]):
        halves = [found["reports"][step] for found in (first, second)]
        for term, value in whole.items():
            if "@" not in term:
                mean = sum(report[term] for report in halves) / WORLD_SIZE
                rel = 1e-4 if term == "grad_norm" else 1e-5
                assert mean == pytest.approx(value, rel=rel, abs=1e-5), f"{name}, step {step}, {term}"
        assert halves[0]["grad_norm"] == halves[1]["grad_norm"]
    compare(first["learner"], expected["learner"], name, ATOL)
    compare(first["average"], expected["average"], f"averaged {name}", ATOL)


@pytest.mark.parametrize("name", SCENARIOS)
def test_ddp_leaves_both_workers_with_the_same_weights(workers, name):
    first, second = (worker[f"ddp {name}"] for worker in workers)
    compare(second["learner"], first["learner"], name, 0)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_steps_of_a_scenario_move_the_weights_far_beyond_the_tolerance(name):
    before = TrainState(SCENARIOS[name].config, DIMENSIONS, CPU).state_dict()["average"]
    after = alone(name)["average"]
    assert max(float((after[key] - value).abs().max()) for key, value in before.items()) > 100 * ATOL


def test_one_kind_resumes_what_the_other_left(workers):
    found = workers[0]["resumed"]
    expected = found["ddp"]
    for order, result in found.items():
        assert result["step"] == NUM_STEPS
        for part in ("learner", "average"):
            compare(result[part], expected[part], f"{order}, {part}", 1e-6)
        assert result["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
        assert result["optimizer"]["state"].keys() == expected["optimizer"]["state"].keys()
        for number, moments in expected["optimizer"]["state"].items():
            compare(result["optimizer"]["state"][number], moments, f"{order}, moments of {number}", 1e-6, 1e-5)


def test_one_worker_resumes_what_two_left(workers):
    state = TrainState(RESUMED.config, DIMENSIONS, CPU)
    saved = workers[0]["resumed"]["fsdp"]
    state.load_state_dict(saved)
    found = state.state_dict()
    assert found["step"] == NUM_STEPS
    for part in ("learner", "average"):
        compare(found[part], saved[part], part, 0)
    for number, moments in saved["optimizer"]["state"].items():
        compare(found["optimizer"]["state"][number], moments, f"moments of {number}", 0)


def test_under_fsdp_a_worker_holds_its_part_and_gathers_a_block_at_a_time(workers):
    for worker in workers:
        parts = worker["parts"]
        assert parts["all are parts"]
        assert 0.4 < parts["share held"] < 0.6
        image, text = [True, False], [True]
        assert parts["blocks that are parts inside the second"] == image + text


def test_the_delivered_model_is_whole(workers):
    parts = workers[0]["parts"]
    compare(parts["whole average"], parts["average"], "whole average", 0)
    expected = TrainState(make_config("supcon"), DIMENSIONS, CPU).average.state_dict()
    assert {name: value.shape for name, value in parts["whole average"].items()} == {
        name: value.shape for name, value in expected.items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_one_worker_is_neither(mode):
    state = TrainState(make_config("supcon", parallel=mode), DIMENSIONS, CPU)
    assert not any(isinstance(parameter, DTensor) for parameter in state.learner.parameters())
    assert state.whole_average() is state.average
    weights = whole_state(state.learner)
    load_whole_state(state.learner, {name: torch.zeros_like(value) for name, value in weights.items()})
    assert not any(parameter.any() for parameter in state.learner.parameters())
