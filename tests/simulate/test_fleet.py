"""Queueing theory's closed forms, a client that loses nothing, and bounds that no policy can pass."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from elastic.profile.tables import Modality
from elastic.serve.batching import Front, Level
from elastic.serve.policies.baselines import MaxAccuracy, SlackFit, Static
from elastic.serve.policies.lookahead import LookaheadPolicy
from elastic.serve.policy import Policy
from elastic.simulate.fleet import Failure, Fleet, Outcome, Requests, simulate
from elastic.simulate.service import PredictedTimes, SlowerTimes, Times
from elastic.simulate.trace import draw
from elastic.submodel import Submodel

MS = 10.0


def front(*, max_batch: int = 8) -> Front:
    """Two levels: 10 ms and 4 ms more per further input; 20 ms and 12 ms more."""
    small, large = (
        Level(
            Submodel((ffn,)),
            str(ffn),
            tuple(first + more * extra for extra in range(max_batch)),
            {8: quality},
        )
        for ffn, first, more, quality in ((1, MS, 4.0, 0.5), (2, 2 * MS, 12.0, 0.8))
    )
    return Front((small, large))


def serve(
    at_ms: list[float] | np.ndarray,
    policy: Callable[[], Policy],
    *,
    slo_ms: float = 1e6,
    max_batch: int = 8,
    **fleet: object,
) -> Outcome:
    fronts = {"image": front(max_batch=max_batch)}
    requests = Requests(at_ms=np.asarray(at_ms, float), slo_ms=np.full(len(at_ms), float(slo_ms)))
    machines = Fleet(fronts=fronts, times=PredictedTimes(fronts), policy=policy, **fleet)  # type: ignore[arg-type]
    return simulate(machines, requests)


def test_a_lone_request_takes_its_model_time_and_the_overhead():
    outcome = serve([5.0], lambda: Static(1), overhead_ms=3.0)
    assert outcome.latency_ms.tolist() == [2 * MS + 3.0]
    assert outcome.quality.tolist() == [0.8]


def test_what_waits_shares_the_next_batch():
    outcome = serve([0.0, 1.0, 2.0, 3.0], lambda: Static(0))
    assert outcome.batch_sizes.tolist() == [1, 3]
    assert outcome.latency_ms.tolist() == [10.0, 27.0, 26.0, 25.0]


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_the_mean_wait_of_one_model_is_that_of_an_m_d_1_queue(load: float):
    """Pollaczek-Khinchine for constant service: rho / (2 (1 - rho)) service times."""
    arrivals = draw("poisson", 1000 * load / MS, 3e4, seed=3)
    outcome = serve(arrivals, lambda: Static(0), max_batch=1, max_waiting=10**6)
    wait = np.nanmean(outcome.latency_ms) - MS
    assert wait == pytest.approx(MS * load / (2 * (1 - load)), rel=0.15)


def test_the_same_seed_gives_the_same_outcome():
    arrivals = draw("bursty", 150, 2000, seed=0)
    first, second = (serve(arrivals, LookaheadPolicy, slo_ms=60, num_replicas=3) for _ in range(2))
    np.testing.assert_array_equal(first.latency_ms, second.latency_ms)
    np.testing.assert_array_equal(first.refused, second.refused)


def test_every_request_ends_in_one_way():
    outcome = serve(draw("bursty", 400, 1000, seed=1), LookaheadPolicy, slo_ms=60)
    answered = ~np.isnan(outcome.latency_ms)
    assert (answered.astype(int) + outcome.refused + outcome.dropped == 1).all()
    assert not (outcome.met & ~answered).any()
    assert 0 < outcome.refused.sum() < len(answered)


def test_what_ours_admits_it_answers_in_time_when_the_table_is_right():
    outcome = serve(draw("bursty", 400, 1000, seed=2), LookaheadPolicy, slo_ms=60)
    assert outcome.met[~outcome.refused].all()


def test_under_light_load_everything_gets_the_most_accurate_model():
    outcome = serve(draw("poisson", 2, 20_000, seed=0), LookaheadPolicy, slo_ms=1000)
    assert np.unique(outcome.quality).tolist() == [0.8]
    assert outcome.met.all()


@pytest.mark.parametrize("other", [lambda: Static(0), lambda: Static(1), MaxAccuracy])
def test_ours_is_beaten_in_neither_attainment_nor_quality_by_simpler_ones_under_overload(other: Callable[[], Policy]):
    def quality_of_all(outcome: Outcome) -> float:
        return float(np.where(outcome.met, outcome.quality, 0).mean())

    arrivals = draw("bursty", 200, 2000, seed=4)
    ours, theirs = (serve(arrivals, policy, slo_ms=60) for policy in (LookaheadPolicy, other))
    assert quality_of_all(ours) >= quality_of_all(theirs)


class StalledTimes(PredictedTimes):
    """As predicted, but for a share of the batches that take three times as long."""

    share = 0.05

    def draw(self, modality: Modality, level: int, batch_size: int, luck: float) -> float:
        predicted_ms = super().draw(modality, level, batch_size, luck)
        return 3 * predicted_ms if luck < self.share else predicted_ms


def tight_and_alone(times: Callable[[Mapping[Modality, Front]], Times]) -> Outcome:
    """500 requests that never meet, each with a quarter more time than the smallest submodel takes."""
    fronts = {"image": front()}
    requests = Requests(at_ms=np.arange(500) * 10 * MS, slo_ms=np.full(500, 1.25 * MS))
    return simulate(Fleet(fronts=fronts, times=times(fronts), policy=LookaheadPolicy), requests)


def test_a_stall_does_not_have_what_comes_alone_after_it_refused():
    outcome = tight_and_alone(StalledTimes)
    assert not outcome.refused.any() and not outcome.dropped.any()
    assert outcome.met.mean() == pytest.approx(1 - StalledTimes.share, abs=0.03)


def test_most_of_what_comes_alone_is_refused_when_the_machine_is_too_slow_every_time():
    slow = tight_and_alone(lambda fronts: SlowerTimes(PredictedTimes(fronts), 1.4))
    assert 0.6 < (slow.refused | slow.dropped).mean() < 1.0  # now and then one is tried, lest it stays so for ever


def test_a_failing_replica_loses_no_request_and_takes_none_while_it_is_down():
    arrivals = np.arange(0, 2000, 20.0)
    failure = Failure(at_ms=500.0, replica=0, down_ms=600.0)
    outcome = serve(arrivals, LookaheadPolicy, slo_ms=200, num_replicas=2, failures=[failure])
    assert outcome.met.all()


def test_a_replica_that_is_down_cannot_fail_again():
    failures = [Failure(at_ms=at_ms, replica=0, down_ms=600.0) for at_ms in (500.0, 700.0)]
    outcome = serve(np.arange(0, 3000, 20.0), LookaheadPolicy, slo_ms=200, num_replicas=2, failures=failures)
    assert outcome.met.all()


def test_without_any_replica_requests_are_refused():
    failure = Failure(at_ms=0.5, replica=0, down_ms=100.0)
    outcome = serve([0.0, 1.0, 50.0, 150.0], lambda: Static(0), failures=[failure])
    # The first is lost with the replica and finds no other.
    assert outcome.refused.tolist() == [True, True, True, False]


def test_more_replicas_share_the_load():
    arrivals = draw("poisson", 300, 1500, seed=0)
    policy = lambda: SlackFit({"image": front()})  # noqa: E731
    few, many = (serve(arrivals, policy, slo_ms=50, num_replicas=count) for count in (1, 8))
    assert few.met.mean() < 0.9 < many.met.mean()
