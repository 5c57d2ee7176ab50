"""The alarm is silent on a healthy run, and rings on one that collapses as theory says it must."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from elastic.batch import Batch
from elastic.objectives.prototypes import Prototypes
from elastic.objectives.tips import SelfDistillation
from elastic.train.alarm import LOWEST, Alarm, collapsed, embedding_health
from elastic.train.config import TrainConfig
from elastic.train.state import TrainState
from elastic.train.step import train_step

CPU = torch.device("cpu")
RECORD_STEPS = 12


def test_equal_embeddings_have_collapsed():
    health = embedding_health(torch.randn(1, 8).expand(32, 8).contiguous())
    assert {name: value.item() for name, value in health.items()} == {"collapse@rank": 0, "collapse@spread": 0}


@pytest.mark.parametrize(("rows", "dim"), [(4000, 8), (40, 400)])
def test_embeddings_of_all_directions_are_healthy(rows, dim):
    health = embedding_health(torch.randn(rows, dim, generator=torch.Generator().manual_seed(0)))
    assert 0.95 < health["collapse@rank"] <= 1
    assert 0.99 < health["collapse@spread"] <= 1


def test_rank_counts_directions_whatever_their_variance():
    directions = torch.eye(16)[:4].repeat(8, 1)
    # Four equal points of a simplex vary in three directions.
    expected = torch.tensor(3.0).log() / torch.tensor(16.0).log()
    for scale in (1.0, 0.05):
        health = embedding_health(torch.eye(16)[15] + scale * directions)
        torch.testing.assert_close(health["collapse@rank"], expected, rtol=0, atol=1e-3)
    two = embedding_health(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).repeat(8, 1))
    assert two["collapse@rank"] == pytest.approx(0, abs=1e-6) and two["collapse@spread"] > 0.8


def test_spread_is_the_logarithm_of_the_variance():
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert embedding_health(opposite)["collapse@spread"] == 1
    angle = 0.2  # around the mean direction: variance sin^2
    close = torch.tensor([[1.0, angle], [1.0, -angle]])
    variance = angle**2 / (1 + angle**2)
    expected = 1 + torch.tensor(variance).log10() / 2
    torch.testing.assert_close(embedding_health(close)["collapse@spread"], expected)


def test_two_rows_say_nothing_of_directions():
    assert embedding_health(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))["collapse@rank"] == 1


def test_health_is_reported_for_every_submodel(config, dimensions, make_batch):
    state = TrainState(config, dimensions, CPU)
    report = train_step(state, [make_batch(0), make_batch(1)], [state.space.full, state.space.smallest], rank=0)
    for granularity in ("XL", "S"):
        assert 0 < report[f"embedding/collapse@rank/{granularity}"] <= 1
        assert 0 < report[f"embedding/collapse@spread/{granularity}"] <= 1


def test_only_values_that_mean_collapse_are_looked_at():
    low = {"crops/collapse@use/XL": 0.1, "embedding/collapse@rank/S": LOWEST - 0.01}
    fine = {"embedding/collapse@rank/XL": LOWEST, "crops/certainty@rows/XL": 0.0, "loss": 0.0, "supcon/nce@4/S": 0.0}
    assert collapsed(low | fine) == low


def test_a_name_is_warned_of_once_and_only_when_it_stays_low():
    alarm = Alarm()
    low, high = {"crops/collapse@use/XL": 0.1}, {"crops/collapse@use/XL": 0.9}
    heard = [alarm.hear({"step": step} | values) for step, values in enumerate([low, high, low, {}, low, low, high])]
    assert [len(warnings) for warnings in heard] == [0, 0, 0, 0, 1, 0, 0]
    assert heard[4][0].startswith("crops/collapse@use/XL is 0.10 at step 4")


@pytest.fixture
def follow(config, make_batch, dimensions) -> Callable[..., list[str]]:
    """What the alarm says to a run of these steps on three batches."""

    def make_cropped(seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed + 100)
        return replace(make_batch(seed), local_images=torch.randn(16, 3, 8, 8, generator=generator))

    def run(steps: int, changed: TrainConfig) -> list[str]:
        state, alarm = TrainState(changed, dimensions, CPU), Alarm()
        batches, reports, warnings = [make_cropped(seed) for seed in range(3)], [], []
        for step in range(steps):
            reports.append(train_step(state, [batches[step % 3]], [state.space.full], rank=0))
            if len(reports) == RECORD_STEPS:
                means = {name: float(torch.stack([r[name] for r in reports]).mean()) for name in reports[0]}
                warnings += alarm.hear({"step": step + 1} | means)
                reports = []
        return warnings

    return run


@pytest.fixture
def own_teacher(config: TrainConfig) -> TrainConfig:
    """Self-distillation with only the head averaged, at a rate that is large for it."""
    crops = SelfDistillation(prototypes=Prototypes(count=64, hidden=32, bottleneck=16))
    return replace(
        config,
        model=replace(config.model, vision=replace(config.model.vision, drop_path=0.0)),
        objectives={"crops": crops},
        teacher="student",
        steps=200,
        optim=replace(config.optim, learning_rate=3e-3, warmup_fraction=0.0, ema_decay=0.9),
    )


def test_a_student_that_teaches_itself_without_text_collapses_and_is_warned_of(own_teacher, follow):
    assert any("embedding/collapse@spread/XL" in warning for warning in follow(84, own_teacher))


def test_text_keeps_it_from_collapsing_and_the_alarm_silent(config, own_teacher, follow):
    crops = replace(own_teacher.objectives["crops"], weight=0.1)
    anchored = replace(own_teacher, objectives={"crops": crops, "captions": config.objectives["captions"]})
    assert follow(48, replace(anchored, optim=replace(anchored.optim, learning_rate=1e-3))) == []
