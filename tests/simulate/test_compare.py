"""A score counts every request, and all policies see the same ones."""

import numpy as np

from elastic.serve.batching import Front, Level
from elastic.serve.policies.lookahead import LookaheadPolicy
from elastic.serve.policies.registry import POLICIES
from elastic.simulate.compare import compare, mean_scores, score
from elastic.simulate.fleet import Fleet, Outcome, Requests
from elastic.simulate.scaling import History
from elastic.simulate.service import PredictedTimes
from elastic.submodel import Submodel

FRONTS = {
    "image": Front(
        tuple(
            Level(Submodel((ffn,)), name, (ms, 1.5 * ms), {8: quality})
            for ffn, name, ms, quality in ((1, "S", 4.0, 0.5), (2, "XL", 10.0, 0.8))
        )
    )
}


def test_a_score_counts_late_refused_and_forgotten_requests_as_not_met():
    outcome = Outcome(
        latency_ms=np.array([10.0, 40.0, np.nan, np.nan]),
        quality=np.array([0.8, 0.5, np.nan, np.nan]),
        met=np.array([True, False, False, False]),
        refused=np.array([False, False, True, False]),
        dropped=np.array([False, False, False, True]),
        batch_sizes=np.array([2]),
        decision_us=np.array([5.0]),
        history=History(1),
    )
    found = score(outcome)
    assert (found.attainment, found.quality_met, found.quality_all, found.refused) == (0.25, 0.8, 0.2, 0.25)
    assert (found.p50_ms, found.mean_batch) == (25.0, 2.0)


def test_all_policies_serve_the_same_arrivals():
    at_ms = np.arange(0.0, 400.0, 4.0)
    traces = {seed: Requests(at_ms=at_ms + seed, slo_ms=np.full(len(at_ms), 30.0)) for seed in range(2)}
    fleet = Fleet(fronts=FRONTS, times=PredictedTimes(FRONTS), policy=LookaheadPolicy)
    done = []
    found = compare(fleet, POLICIES, traces, on_done=lambda: done.append(1))
    assert list(found) == list(POLICIES) and len(done) == 2 * len(POLICIES)
    # 250 inputs a second: the small level serves 333, the large one 133.
    assert found["static=smallest"][0].attainment == 1.0
    assert found["static=largest"][0].attainment < 0.6
    assert found["lookahead"][0].attainment == 1.0
    assert found["lookahead"][0].quality_all > found["static=smallest"][0].quality_all


def test_means_and_spreads_are_over_seeds():
    at_ms = np.arange(0.0, 200.0, 4.0)
    traces = {seed: Requests(at_ms=at_ms, slo_ms=np.full(len(at_ms), 30.0)) for seed in range(2)}
    fleet = Fleet(fronts=FRONTS, times=PredictedTimes(FRONTS), policy=LookaheadPolicy)
    average, spread = mean_scores(compare(fleet, ["static=S"], traces)["static=S"])
    assert (average.attainment, spread.attainment) == (1.0, 0.0)


def test_only_the_counted_requests_of_an_outcome_are_scored():
    outcome = Outcome(
        latency_ms=np.array([10.0, np.nan, 30.0]),
        quality=np.array([0.8, np.nan, 0.5]),
        met=np.array([True, False, True]),
        refused=np.array([False, True, False]),
        dropped=np.array([False, False, False]),
        batch_sizes=np.array([1, 1]),
        decision_us=np.array([5.0]),
        history=History(1),
    )
    found = score(outcome, np.array([False, True, True]))
    assert (found.attainment, found.quality_met, found.quality_all, found.refused) == (0.5, 0.5, 0.25, 0.5)
    assert (found.kept, found.p50_ms) == (1.0, 30.0)
