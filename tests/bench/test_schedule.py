"""Warm-ups before arrivals, and objectives from weights."""

import numpy as np
import pytest

from elastic.bench.schedule import mix, warmed_up
from elastic.errors import ConfigError


def test_a_warm_up_comes_before_at_the_mean_rate_and_moves_nothing_else():
    at_ms = np.arange(0.0, 10_000.0, 10.0)
    found = warmed_up(at_ms, 10_000.0, 50_000.0, np.random.default_rng(0))
    before = found[found < 50_000]
    np.testing.assert_array_equal(found[len(before) :], 50_000 + at_ms)
    assert len(before) == pytest.approx(5_000, rel=0.05)
    assert (np.diff(found) >= 0).all()


def test_without_a_warm_up_the_arrivals_are_the_same():
    at_ms = np.array([0.0, 3.0])
    np.testing.assert_array_equal(warmed_up(at_ms, 10.0, 0.0, np.random.default_rng(0)), at_ms)


def test_objectives_are_drawn_by_weight():
    found = mix((10.0, 20.0, 50.0), (1.0, 3.0, 0.0), 20_000, np.random.default_rng(0))
    assert set(found) == {10.0, 20.0}
    assert (found == 20.0).mean() == pytest.approx(0.75, abs=0.02)


def test_objectives_without_weights_are_as_likely():
    found = mix((10.0, 20.0), (), 20_000, np.random.default_rng(0))
    assert (found == 20.0).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("values", "weights"),
    [((), ()), ((0.0,), ()), ((1.0, 2.0), (1.0,)), ((1.0,), (0.0,)), ((1.0, 2.0), (2.0, -1.0))],
    ids=str,
)
def test_a_mix_that_cannot_be_drawn_is_refused(values: tuple, weights: tuple):
    with pytest.raises(ConfigError):
        mix(values, weights, 10, np.random.default_rng(0))
