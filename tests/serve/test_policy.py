import random

import pytest

from elastic.serve.batching import Costs, Work
from elastic.serve.policy import floor_plan, is_on_time


def work(id: int, deadline_ms: float, **fields: object) -> Work:
    return Work(id=id, modality=fields.pop("modality", "image"), deadline_ms=deadline_ms, budget_ms=0.0, **fields)  # type: ignore[arg-type]


def test_the_floor_plan_of_one_batch_ends_after_its_time(costs: Costs) -> None:
    plan = floor_plan([work(i, 100.0) for i in range(3)], 10.0, costs)
    assert (plan.late, plan.finish_ms) == (None, 16.0)


def test_the_floor_plan_names_the_first_that_is_late(costs: Costs) -> None:
    # One batch of two takes 5 ms, so the first goes alone: 4 and 8 ms.
    first, second = work(1, 4.5), work(2, 7.0)
    plan = floor_plan([first, second], 0.0, costs)
    assert plan.first is not None and plan.first.works == (first,)
    assert plan.late is second


def test_the_floor_plan_of_nothing_is_done_at_once(costs: Costs) -> None:
    plan = floor_plan([], 7.0, costs)
    assert (plan.first, plan.late, plan.finish_ms) == (None, None, 7.0)
    assert is_on_time([], 7.0, costs)


@pytest.mark.parametrize("seed", range(20))
def test_a_queue_is_on_time_exactly_when_its_floor_plan_has_nothing_late(costs: Costs, seed: int) -> None:
    rng = random.Random(seed)
    queue = [
        work(i, rng.uniform(5, 60), floor=rng.choice([0, 0, 2]), modality=rng.choice(["image", "text"]))
        for i in range(rng.randint(1, 12))
    ]
    queue.sort(key=lambda waiting: waiting.urgency)
    assert is_on_time(queue, 0.0, costs) == (floor_plan(queue, 0.0, costs).late is None)
