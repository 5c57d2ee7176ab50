"""What is counted, on a fake clock, from fronts with round numbers."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from elastic.errors import DeadlineExceeded, InvalidRequest, Overloaded, SloInfeasible
from elastic.serve.batching import Front, Work
from elastic.serve.engine import Computed, RanBatch, Request
from elastic.serve.observer import Outcome
from elastic.serve.policy import Limit, Run
from elastic.serve.scaling.load import Load, LoadObserver, LoadWindow, ideal
from elastic.submodel import Slo


class FakeClock:
    def __init__(self) -> None:
        self.ms = 0.0

    def __call__(self) -> float:
        return self.ms


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def observer(front: Front, clock: FakeClock) -> LoadObserver:
    fronts = {"image": front, "text": front}
    return LoadObserver(lambda: fronts, window_s=10, clock=clock)


def request(*, budget_ms: float, num_inputs: int = 1, embed_dim: int | None = None) -> Request:
    slo = Slo(latency_ms=budget_ms, embed_dim=embed_dim)
    return Request(("image",) * num_inputs, slo, arrived_ms=0.0, deadline_ms=budget_ms)


def answer(front: Front, level: int, *, width: int = 64, preprocess_ms: float = 0.0) -> Computed:
    served = front.levels[level]
    return Computed(
        embedding=np.ones(64, np.float32),
        embed_dim=width,
        modality="image",
        level=served,
        quality=served.quality[width],
        queue_ms=0.0,
        compute_ms=served.batch_ms[0],
        predicted_ms=served.batch_ms[0],
        preprocess_ms=preprocess_ms,
        batch_size=1,
        limit=Limit.NONE,
    )


def outcome(asked: Request | None, *computed: Computed, error: BaseException | None = None, slack_ms: float = 1.0):
    return Outcome(asked, computed, error, total_ms=0.0, slack_ms=slack_ms)


def batch(front: Front, level: int, size: int, took_ms: float) -> RanBatch:
    works = tuple(Work(id=number, modality="image", deadline_ms=0.0, budget_ms=0.0) for number in range(size))
    return RanBatch(Run(level, works, 0.0, Limit.NONE), front.levels[level], took_ms)


def test_an_answer_at_the_best_level_of_its_budget_loses_nothing(observer: LoadObserver, front: Front):
    observer.request_finished(outcome(request(budget_ms=100), answer(front, 3)))
    load = observer.load(0)
    assert (load.requests, load.missed, load.best, load.lost) == (1, 0, 0.6, 0.0)


def test_an_answer_at_a_lower_level_loses_the_difference(observer: LoadObserver, front: Front):
    observer.request_finished(outcome(request(budget_ms=100), answer(front, 1)))
    assert observer.load(0).quality_loss == pytest.approx((0.6 - 0.4) / 0.6)


def test_what_no_fleet_could_do_better_is_not_lost(observer: LoadObserver, front: Front):
    """In 20 ms the third level fits with room to wait (18), the fourth does not (30)."""
    observer.request_finished(outcome(request(budget_ms=20), answer(front, 2)))
    assert observer.load(0).lost == 0.0


def test_time_spent_decoding_is_no_loss_of_the_model(observer: LoadObserver, front: Front):
    observer.request_finished(outcome(request(budget_ms=100), answer(front, 2, preprocess_ms=80)))
    assert observer.load(0).lost == 0.0


def test_quality_is_compared_at_the_width_that_was_asked_for(observer: LoadObserver, front: Front):
    observer.request_finished(outcome(request(budget_ms=100, embed_dim=32), answer(front, 3, width=32)))
    assert (observer.load(0).best, observer.load(0).lost) == (0.5, 0.0)


def test_better_than_thought_possible_makes_up_for_nothing(observer: LoadObserver, front: Front):
    observer.request_finished(outcome(request(budget_ms=20), answer(front, 3)))
    observer.request_finished(outcome(request(budget_ms=20), answer(front, 1)))
    assert observer.load(0).lost == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("error", "slack_ms", "counted"),
    [
        (Overloaded("full", 5.0), 50.0, True),
        (DeadlineExceeded(100, 1), -1.0, True),
        (asyncio.CancelledError(), -1.0, True),
        (asyncio.CancelledError(), 50.0, False),
        (InvalidRequest("inputs", "is empty"), 50.0, False),
        (SloInfeasible("a", "b", "c"), 50.0, False),
        (ZeroDivisionError(), 50.0, False),
    ],
)
def test_only_failures_that_load_explains_are_misses(
    observer: LoadObserver, error: BaseException, slack_ms: float, counted: bool
):
    observer.request_finished(outcome(request(budget_ms=100), error=error, slack_ms=slack_ms))
    assert (observer.load(0).requests, observer.load(0).missed) == (counted, counted)


def test_an_answer_after_its_budget_is_a_miss(observer: LoadObserver, front: Front):
    observer.request_finished(outcome(request(budget_ms=100), answer(front, 0), slack_ms=-2.0))
    assert observer.load(0).attainment == 0.0


def test_a_budget_too_short_for_an_idle_replica_is_not_counted(observer: LoadObserver):
    observer.request_finished(outcome(request(budget_ms=3), error=Overloaded("late", 1.0)))
    assert observer.load(0).requests == 0


def test_a_request_that_could_not_be_read_is_not_counted(observer: LoadObserver):
    observer.request_finished(outcome(None, error=InvalidRequest("inputs", "is empty")))
    assert observer.load(0) == Load()


def test_refused_work_is_asked_for_all_the_same(observer: LoadObserver, front: Front):
    for error in (None, Overloaded("full", 5.0)):
        computed = () if error else (answer(front, 3),)
        observer.request_finished(outcome(request(budget_ms=1000), *computed, error=error))
    # In batches of eight, at the fourth level: 76 ms, so 9.5 each.
    assert observer.load(0).full_ms == pytest.approx(2 * 9.5)


def test_work_is_measured_in_what_it_really_takes_here(observer: LoadObserver, front: Front, clock: FakeClock):
    clock.ms = 1000.0
    observer.request_finished(outcome(request(budget_ms=1000), answer(front, 3)))
    observer.batch_ran(batch(front, 0, 2, took_ms=10.0))  # the table says 5
    load = observer.load(0)
    assert load.slowness == 2.0
    assert load.work == pytest.approx(2 * 9.5 / 1000)
    assert load.busy == 0.01


def test_loads_of_replicas_add_up():
    one = Load(span_ms=1000, window_ms=1000, requests=10, missed=1, full_ms=800, table_ms=300, busy_ms=300)
    two = Load(span_ms=500, window_ms=500, requests=0, missed=0, full_ms=100, table_ms=300, busy_ms=300)
    both = one + two
    assert both.attainment == 0.9
    assert both.busy == 600 / 1500


def test_a_replica_that_came_up_lately_brings_no_work_of_its_own():
    """The old one did all the work of the last second, but for what the new one took over in the last tenth of it."""
    old = Load(span_ms=1000, window_ms=1000, full_ms=950)
    new = Load(span_ms=100, window_ms=100, full_ms=50)
    assert (old + new).work == 1.0


@pytest.mark.parametrize(
    ("num_inputs", "budget_ms", "level", "ms"),
    [
        (1, 1000.0, 3, 9.5),  # whole batches fit
        (1, 30.0, 3, 20.0),  # only one at a time, with room to wait
        (1, 29.0, 2, 8.0),  # two at the level below
        (1, 4.0, 0, 4.0),  # exactly, on an idle replica
        (1, 3.9, None, None),
        (9, 1000.0, 3, 85.5),  # a batch and one
        (9, 14.9, None, None),
    ],
)
def test_the_best_way_to_answer(front: Front, num_inputs: int, budget_ms: float, level: int | None, ms: float | None):
    found = ideal(front, num_inputs, budget_ms)
    assert (found and found.level, found and pytest.approx(found.ms)) == (level, ms)


def test_the_window_forgets_and_says_how_long_it_reaches_back():
    window = LoadWindow(window_ms=1000, now_ms=500.0, num_slots=10)
    window.slot(510.0).requests += 1
    window.slot(990.0).requests += 1
    assert window.load(1000.0) == Load(span_ms=500.0, window_ms=500.0, requests=2)
    assert window.load(1430.0) == Load(span_ms=930.0, window_ms=930.0, requests=2)
    assert window.load(1510.0) == Load(span_ms=910.0, window_ms=910.0, requests=1)
    assert window.load(9000.0).requests == 0


def test_what_waits_is_of_the_moment(observer: LoadObserver):
    assert observer.load(7).waiting == 7
    assert observer.load(0) == replace(observer.load(7), waiting=0)


def test_after_a_swap_answers_are_compared_with_the_new_model(front: Front, clock: FakeClock):
    served = [{"image": Front(front.levels[:2])}]
    observer = LoadObserver(lambda: served[-1], window_s=10, clock=clock)
    observer.request_finished(outcome(request(budget_ms=100), answer(front, 1)))
    assert observer.load(0).lost == 0.0
    served.append({"image": front})
    observer.request_finished(outcome(request(budget_ms=100), answer(front, 1)))
    assert observer.load(0).lost == pytest.approx(0.2)


def test_a_modality_that_is_not_served_any_more_is_not_counted(front: Front, clock: FakeClock):
    observer = LoadObserver(lambda: {"text": front}, window_s=10, clock=clock)
    observer.request_finished(outcome(request(budget_ms=100), answer(front, 1)))
    assert observer.load(0).requests == 0
