"""Every fleet gets the same arrivals, and what it cost stands beside what it answered."""

import numpy as np
import pytest

from elastic.serve.batching import Front, Level
from elastic.serve.policies.baselines import Static
from elastic.serve.scaling.scaler import ScalingRules
from elastic.simulate.fleet import Fleet, Requests
from elastic.simulate.fleets import OURS, Trial, compare_fleets, plot_fleets, render_fleets, scalers
from elastic.simulate.service import PredictedTimes
from elastic.submodel import Submodel

UNTIL_MS = 20_000.0


@pytest.fixture(scope="module")
def requests() -> Requests:
    return Requests(at_ms=np.arange(0.0, UNTIL_MS, 100.0), slo_ms=np.full(200, 500.0))


@pytest.fixture(scope="module")
def trials(requests: Requests) -> dict[str, Trial]:
    """Twice as much as one replica can do."""
    fronts = {"image": Front((Level(Submodel((1,)), "S", (200.0, 380.0), {8: 0.5}),))}
    fleet = Fleet(fronts=fronts, times=PredictedTimes(fronts), policy=lambda: Static(0))
    return compare_fleets(fleet, ScalingRules(max_replicas=4), 2000.0, {0: requests, 1: requests}, UNTIL_MS)


def test_fixed_fleets_of_both_ends_stand_beside_every_scaler(trials: dict[str, Trial]):
    assert list(trials) == ["1, fixed", "4, fixed", *scalers(ScalingRules(max_replicas=4))]
    assert all(set(trial.scores) == {0, 1} for trial in trials.values())


def test_a_fixed_fleet_costs_its_size(trials: dict[str, Trial]):
    assert trials["1, fixed"].mean("replica_seconds") == 20
    assert trials["4, fixed"].mean("replica_seconds") == 80
    assert trials["4, fixed"].mean("changes") == 0


def test_one_that_grows_meets_more_than_the_smallest_for_less_than_the_largest(trials: dict[str, Trial]):
    ours = trials[OURS]
    assert trials["1, fixed"].mean("attainment") < ours.mean("attainment") <= trials["4, fixed"].mean("attainment")
    assert 20 < ours.mean("replica_seconds") < 80


def test_the_table_and_the_plot_show_every_fleet(trials: dict[str, Trial], requests: Requests):
    assert render_fleets("title", trials).row_count == len(trials)
    figure = plot_fleets("title", requests, trials, UNTIL_MS)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(trials)
