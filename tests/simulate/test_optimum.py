"""The optimum is what trying everything finds, and no policy is above it."""

import itertools

import numpy as np
import pytest

from elastic.errors import ConfigError
from elastic.serve.batching import Front, Level
from elastic.serve.policies.registry import POLICIES, policy_maker
from elastic.simulate.compare import score
from elastic.simulate.fleet import Fleet, Requests, simulate
from elastic.simulate.optimum import best_quality
from elastic.simulate.service import PredictedTimes
from elastic.submodel import Submodel

FRONT = Front(
    (
        Level(Submodel((1,)), "S", (4.0, 5.0, 6.0), {8: 0.5}),
        Level(Submodel((2,)), "L", (9.0, 12.0, 15.0), {8: 0.8}),
    )
)


def everything_tried(at_ms: np.ndarray, slo_ms: float) -> float:
    """The best over all partitions of all requests into batches, dropped ones, levels and orders."""

    def go(left: frozenset[int], free_ms: float) -> float:
        best = 0.0
        for size in range(1, 4):
            for chosen in itertools.combinations(sorted(left), size):
                start_ms = max(free_ms, max(at_ms[i] for i in chosen))
                for level in FRONT.levels:
                    end_ms = start_ms + level.batch_ms[size - 1]
                    if end_ms <= min(at_ms[i] for i in chosen) + slo_ms:
                        best = max(best, size * level.full_quality + go(left - set(chosen), end_ms))
        return best

    return go(frozenset(range(len(at_ms))), 0.0) / len(at_ms)


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_better(seed: int):
    at_ms = np.sort(np.random.default_rng(seed).uniform(0, 15, size=5))
    assert best_quality(FRONT, at_ms, np.full(5, 12.0)) == pytest.approx(everything_tried(at_ms, 12.0))


def test_a_lone_request_gets_the_best_level():
    assert best_quality(FRONT, np.array([3.0]), np.array([9.0])) == pytest.approx(0.8)


def test_what_cannot_be_met_counts_nothing():
    assert best_quality(FRONT, np.array([0.0, 0.5]), np.array([4.0, 4.0])) == pytest.approx(0.25)


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_is_above_it(name: str):
    fronts = {"image": FRONT}
    fleet = Fleet(fronts=fronts, times=PredictedTimes(fronts), policy=policy_maker(name, fronts))
    for seed in range(3):
        at_ms = np.sort(np.random.default_rng(seed).uniform(0, 100, size=25))
        slo_ms = np.full(25, 20.0)
        found = score(simulate(fleet, Requests(at_ms=at_ms, slo_ms=slo_ms))).quality_all
        assert found <= best_quality(FRONT, at_ms, slo_ms) + 1e-9


def test_deadlines_have_to_be_in_order():
    with pytest.raises(ConfigError, match="order"):
        best_quality(FRONT, np.array([0.0, 1.0]), np.array([20.0, 5.0]))
