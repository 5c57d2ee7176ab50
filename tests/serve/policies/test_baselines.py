"""Each policy of another system makes the choice that its paper describes, on a front with round numbers."""

import pytest

from elastic.serve.batching import Costs, Front, Work
from elastic.serve.policies.baselines import (
    ClipperAimd,
    HeadPolicy,
    InfaasMinCost,
    MaxAccuracy,
    MaxBatch,
    SlackFit,
    Static,
)
from elastic.serve.policy import Run


def work(id: int, deadline_ms: float, **fields: object) -> Work:
    return Work(id=id, modality=fields.pop("modality", "image"), deadline_ms=deadline_ms, budget_ms=0.0, **fields)  # type: ignore[arg-type]


def decide(policy: HeadPolicy, costs: Costs, *works: Work, now_ms: float = 0.0) -> tuple[int, int]:
    run = policy.decide(sorted(works, key=lambda one: one.urgency), now_ms, costs)
    assert run.predicted_ms == costs.ms(run.works[0].modality, run.level, len(run.works))
    return run.level, len(run.works)


def waiting(count: int, deadline_ms: float) -> list[Work]:
    return [work(number, deadline_ms) for number in range(count)]


# S: 4 ms and 1 per further input. M: 8 and 2. L: 12 and 4. XL: 20 and 8. At most 8 inputs.
@pytest.mark.parametrize(
    ("policy", "deadline_ms", "level", "size"),
    [
        (Static(2), 24.0, 2, 4),
        (Static(2), 5.0, 2, 1),  # too late for L, and it still has nothing else
        (Static(9), 44.0, 3, 4),
        (InfaasMinCost(), 100.0, 0, 8),
        (InfaasMinCost(), 7.0, 0, 4),
        (MaxAccuracy(), 28.0, 3, 2),
        (MaxAccuracy(), 19.0, 2, 2),
        (MaxAccuracy(), 3.0, 0, 1),
        (MaxBatch(), 28.0, 1, 8),
        (MaxBatch(), 11.0, 0, 8),
        (MaxBatch(), 9.0, 0, 6),
    ],
)
def test_choices(policy: HeadPolicy, deadline_ms: float, level: int, size: int, costs: Costs):
    assert decide(policy, costs, *waiting(8, deadline_ms)) == (level, size)


def test_slackfit_takes_the_time_just_below_the_slack(costs: Costs, front: Front):
    policy = SlackFit({"image": front}, num_buckets=72)  # one per millisecond from 4 to 76
    assert decide(policy, costs, *waiting(8, 76.0)) == (3, 8)
    assert decide(policy, costs, *waiting(8, 41.0)) == (2, 8)
    assert decide(policy, costs, *waiting(8, 23.0)) == (1, 8)
    assert decide(policy, costs, *waiting(8, 4.0)) == (0, 1)


def test_slackfit_prefers_the_larger_batch_in_a_bucket(costs: Costs, front: Front):
    # One bucket holds everything: the largest batch stands for it, at the most accurate level.
    assert decide(SlackFit({"image": front}, num_buckets=1), costs, *waiting(8, 76.0)) == (3, 8)


def test_slackfit_runs_what_there_is(costs: Costs, front: Front):
    assert decide(SlackFit({"image": front}), costs, *waiting(3, 1000.0)) == (3, 3)


def test_corrections_shrink_the_slack(front: Front):
    slow = Costs({"image": front}, {"image": (2.0,) * 4})
    assert decide(SlackFit({"image": front}, num_buckets=72), slow, *waiting(8, 46.0)) == (1, 8)


def test_aimd_grows_by_one_and_shrinks_by_a_tenth(costs: Costs):
    policy = ClipperAimd(0)
    sizes = []
    for _ in range(6):
        run = policy.decide(waiting(8, 100.0), 0.0, costs)
        assert isinstance(run, Run)
        sizes.append(len(run.works))
        policy.observe(run, 50.0)
    assert sizes == [1, 2, 3, 4, 5, 6]
    policy.observe(run, 101.0)  # 7 -> 6.3
    assert decide(policy, costs, *waiting(8, 100.0)) == (0, 6)


def test_aimd_does_not_grow_on_batches_that_were_not_full(costs: Costs):
    policy = ClipperAimd(0)
    for _ in range(3):
        run = policy.decide(waiting(8, 100.0), 0.0, costs)
        policy.observe(run, 0.0)
    lone = policy.decide(waiting(1, 100.0), 0.0, costs)
    policy.observe(lone, 0.0)
    assert decide(policy, costs, *waiting(8, 100.0)) == (0, 4)


@pytest.mark.parametrize("policy", [Static(0), InfaasMinCost(), MaxAccuracy(), MaxBatch()])
def test_floors_hold(policy: HeadPolicy, costs: Costs):
    level, size = decide(policy, costs, work(0, 30.0, floor=2), work(1, 31.0), work(2, 32.0, floor=3))
    assert level >= 2
    assert size <= 2 or level == 3


def test_modalities_are_not_mixed(costs: Costs):
    works = [work(number, 100.0 + number, modality="text" if number % 2 else "image") for number in range(6)]
    assert decide(MaxBatch(), costs, *works) == (3, 3)


def test_everything_is_admitted(costs: Costs):
    Static(0).admit(waiting(50, 1.0), waiting(50, 1.0), 0.0, costs)
