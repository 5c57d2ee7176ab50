"""Drawn arrivals have the rate and the burstiness that their parameters promise."""

from typing import get_args

import numpy as np
import pytest

from elastic.errors import ConfigError
from elastic.simulate.recorded import Points
from elastic.simulate.trace import SHAPES, Shape, describe, draw, gamma, ramp

MINUTE_MS = 60_000.0


@pytest.mark.parametrize("shape", SHAPES)
def test_arrivals_ascend_within_the_duration_at_the_mean_rate(shape: str):
    at_ms = draw(shape, 500, MINUTE_MS, seed=1)
    assert (np.diff(at_ms) >= 0).all() and at_ms[0] >= 0 and at_ms[-1] <= MINUTE_MS
    assert len(at_ms) == pytest.approx(500 * 60, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_seed_decides_the_trace(shape: str):
    np.testing.assert_array_equal(draw(shape, 100, 5000, seed=2), draw(shape, 100, 5000, seed=2))
    assert not np.array_equal(draw(shape, 100, 5000, seed=2)[:20], draw(shape, 100, 5000, seed=3)[:20])


@pytest.mark.parametrize("cv2", [0.5, 1.0, 4.0])
def test_gaps_of_renewals_vary_as_asked(cv2: float):
    found = describe(gamma(1000, cv2, MINUTE_MS, np.random.default_rng(0)), MINUTE_MS)
    assert found.cv2 == pytest.approx(cv2, rel=0.05)
    assert found.rate == pytest.approx(1000, rel=0.03)


def test_a_poisson_trace_has_unit_dispersion():
    found = describe(draw("poisson", 1000, MINUTE_MS, seed=0), MINUTE_MS)
    assert found.cv2 == pytest.approx(1, rel=0.05)
    assert found.dispersion == pytest.approx(1, rel=0.15)


def test_merging_makes_bursts_milder_than_their_parameter():
    found = describe(draw("bursty", 1000, MINUTE_MS, seed=0), MINUTE_MS)
    assert 1.5 < found.cv2 < 8
    assert found.peak_to_mean > 1.5


def test_a_ramp_doubles_its_rate_where_it_should():
    at_ms = ramp(200, 600, 1.0, MINUTE_MS, np.random.default_rng(0))
    thirds = np.histogram(at_ms, bins=3, range=(0, MINUTE_MS))[0] / 20
    assert thirds == pytest.approx([200 + 400 / 6, 400, 600 - 400 / 6], rel=0.05)


def test_even_arrivals_do_not_vary():
    found = describe(np.arange(0.0, 1000.0, 10.0), 1000.0)
    assert (found.requests, found.rate, found.peak_to_mean) == (100, 100.0, 1.0)
    assert found.cv2 == pytest.approx(0)


def test_every_shape_can_be_asked_for():
    assert get_args(Shape) == tuple(SHAPES)


def test_a_recorded_trace_is_drawn_as_a_shape_is():
    at_ms = draw(Points(np.array([3.0, 4.0, 7.0])), 3, 1000, seed=0)
    assert at_ms.tolist() == [0.0, 250.0, 1000.0]


@pytest.mark.parametrize(("shape", "rate"), [("square", 1.0), ("poisson", 0.0)])
def test_what_cannot_be_drawn_is_refused(shape: str, rate: float):
    with pytest.raises(ConfigError):
        draw(shape, rate, 1000.0, seed=0)
