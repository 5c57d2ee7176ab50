"""Simulated fleets under the scaler: they neither flap nor stay small, and pay for no more than they use."""

from collections.abc import Callable

import numpy as np
import pytest

from elastic.serve.batching import Front, Level
from elastic.serve.policies.lookahead import LookaheadPolicy
from elastic.serve.scaling.load import Load
from elastic.serve.scaling.scaler import Decision, DeficitScaler, FleetSize, Scaler, ScalingRules, ScalingState
from elastic.simulate.fleet import Failure, Fleet, Outcome, Requests, simulate
from elastic.simulate.scaling import History, OngoingRequests, Scaling
from elastic.simulate.service import PredictedTimes
from elastic.simulate.trace import draw
from elastic.submodel import Submodel

FRONT = Front(
    tuple(
        Level(Submodel((ffn,)), name, tuple(first + more * extra for extra in range(8)), {8: quality})
        for ffn, name, first, more, quality in (
            (1, "S", 250.0, 100.0, 0.5),
            (2, "M", 500.0, 200.0, 0.6),
            (3, "L", 1000.0, 500.0, 0.7),
        )
    )
)
"""A replica answers 1.8 requests a second at full quality and 8.4 at the lowest."""
SLO_MS = 5000.0
FULL_RATE = 1000 * 8 / FRONT.levels[-1].batch_ms[-1]


def serve(
    at_ms: np.ndarray,
    seconds: float,
    rules: ScalingRules,
    *,
    first: int = 1,
    scaler: Callable[[], Scaler] | None = None,
    **fleet: object,
) -> Outcome:
    fronts = {"image": FRONT}
    scaling = Scaling(
        scaler=scaler or (lambda: DeficitScaler(rules)),
        until_ms=1000 * seconds,
        start_ms=6000.0,
        tick_ms=1000.0,
        window_s=rules.window_s,
    )
    machines = Fleet(
        fronts=fronts,
        times=PredictedTimes(fronts),
        policy=LookaheadPolicy,
        num_replicas=first,
        scaling=scaling,
        **fleet,
    )  # type: ignore[arg-type]
    return simulate(machines, Requests(at_ms=at_ms, slo_ms=np.full(len(at_ms), SLO_MS)))


def steady(load: float, seconds: float, seed: int = 0) -> np.ndarray:
    """Arrivals worth so many replicas at full quality."""
    return draw("poisson", load * FULL_RATE, 1000 * seconds, seed)


def final(outcome: Outcome, seconds: float) -> int:
    return int(outcome.history.running(np.array([1000.0 * seconds]))[0])


RULES = ScalingRules(max_replicas=8)


@pytest.fixture(scope="module")
def twice() -> np.ndarray:
    """Twice what a replica answers at full quality, for two minutes."""
    return steady(2.0, 120)


@pytest.mark.parametrize("load", [0.4, 1.5])
def test_it_does_not_flap_under_a_steady_load(load: float):
    assert serve(steady(load, 150), 150, RULES).history.turns == 0


def test_it_does_not_stay_at_small_submodels_that_meet_every_objective(twice: np.ndarray):
    """One replica meets all of it, at the price of quality, unless the fleet grows."""
    alone = serve(twice, 120, ScalingRules(max_replicas=1))
    grown = serve(twice, 120, RULES)
    late = twice > 60_000
    assert alone.met[late].mean() > 0.98 and np.nanmean(alone.quality[late]) < 0.65
    assert grown.met[late].mean() > 0.98 and np.nanmean(grown.quality[late]) > 0.98 * 0.7


def test_a_rival_that_counts_requests_in_progress_may_stay_there(twice: np.ndarray):
    """Larger batches of smaller submodels keep them few, so it sees no reason to grow."""
    outcome = serve(twice, 120, RULES, scaler=lambda: OngoingRequests(1, 8, target=16.0, up_after_s=2.0))
    assert final(outcome, 119) == 1
    assert np.nanmean(outcome.quality[twice > 60_000]) < 0.65


def test_it_recovers_from_a_burst_and_returns_to_the_least():
    burst = 60_000 + steady(5.0, 60, seed=1)
    arrivals = np.sort(np.concatenate([steady(0.2, 240), burst]))
    outcome = serve(arrivals, 240, ScalingRules(max_replicas=8, down_after_s=30.0))
    at_its_end = (arrivals > 90_000) & (arrivals < 120_000)
    assert outcome.met[at_its_end].mean() > 0.98
    assert outcome.history.turns == 1
    assert final(outcome, 239) == 1
    assert outcome.history.replica_seconds(240_000) < 0.6 * 8 * 240


def test_an_idle_fleet_stops_and_starts_again_for_what_then_waits():
    rules = ScalingRules(min_replicas=0, max_replicas=4, zero_after_s=30.0, down_after_s=20.0)
    arrivals = np.array([1000.0, 2000.0, 100_000.0, 108_000.0])
    outcome = serve(arrivals, 120, rules)
    assert outcome.history.running(np.array([1500.0, 90_000.0, 110_000.0])).tolist() == [1, 0, 1]
    # The first one after the pause waits for a replica longer than its budget; the next finds one.
    assert outcome.met.tolist() == [True, True, False, True]


def test_replicas_that_leave_finish_what_they_hold():
    """Nothing is lost while the fleet shrinks under load: every request is answered or told that it will not be."""
    outcome = serve(steady(1.2, 60), 60, ScalingRules(max_replicas=8), first=8, scaler=lambda: Fewer())
    assert sum(running for _, running, _ in outcome.history.events) == -7
    assert (outcome.refused | outcome.dropped | ~np.isnan(outcome.latency_ms)).all()


class Fewer(Scaler):
    """One replica less every five seconds."""

    def decide(self, load: Load, size: FleetSize, state: ScalingState, now_s: float) -> Decision:
        return Decision(max(1, 8 - int(now_s / 5)), state, "")


def test_a_replica_that_fails_is_replaced_and_is_one_too_many_when_it_comes_back():
    failure = Failure(at_ms=50_000.0, replica=0, down_ms=20_000.0)
    outcome = serve(steady(0.2, 80), 80, RULES, failures=[failure])
    assert outcome.history.running(np.array([49_000.0, 53_000.0, 60_000.0, 71_500.0])).tolist() == [1, 0, 1, 1]


def test_what_was_paid_for_begins_with_the_wish_and_ends_with_the_last_answer():
    history = History(2)
    history.changed(1000.0, paid=1)
    history.changed(7000.0, running=1)
    history.changed(8000.0, running=-1)
    history.changed(9000.0, paid=-1)
    assert history.replica_seconds(10_000.0) == 2 * 10 + 8
    assert history.running(np.array([0.0, 6999.0, 7000.0, 8000.0])).tolist() == [2, 2, 3, 2]


def test_changes_of_direction_are_counted():
    history = History(1)
    for second, number in enumerate((2, 4, 4, 3, 1, 5)):
        history.wanted(1000.0 * second, number)
    assert [number for _, number in history.wishes] == [2, 4, 3, 1, 5]
    assert history.turns == 2


def test_the_rival_waits_for_its_delay_and_divides_by_its_target():
    scaler, wanted = OngoingRequests(1, 20, target=2.0), 1
    seen = []
    for second in range(40):
        wanted = scaler.decide(Load(waiting=16.0), FleetSize(wanted, wanted), ScalingState(), float(second)).wanted
        seen.append(wanted)
    assert seen[29:31] == [1, 8]
