"""The slope of memory and its interval, on series whose growth is known."""

import numpy as np
import pytest

from benchmarks.soak import Options, Slope, draw, slopes_of, table

AT_S = np.arange(0.0, 3600.0, 5.0)


def noisy(mib_per_hour: float, seed: int) -> np.ndarray:
    """Memory that wanders: each sample keeps most of the last one's distance from the line."""
    rng, distance, found = np.random.default_rng(seed), 0.0, []
    for at_s in AT_S:
        distance = 0.9 * distance + rng.normal(0.0, 0.5)
        found.append(500 + mib_per_hour * at_s / 3600 + distance)
    return np.array(found)


def test_a_straight_line_has_its_slope_and_no_interval():
    slope = Slope.of(AT_S.tolist(), (100 + 12 * AT_S / 3600).tolist())
    assert (slope.estimate, slope.low, slope.high) == pytest.approx((12, 12, 12))


def test_the_interval_holds_the_slope_about_as_often_as_it_says():
    slopes = [Slope.of(AT_S.tolist(), noisy(3.0, seed).tolist()) for seed in range(200)]
    held = np.mean([slope.low <= 3.0 <= slope.high for slope in slopes])
    assert 0.90 <= held <= 1.0


def test_the_warm_up_is_left_out_and_every_process_is_shown():
    leaking = np.where(AT_S < 720, 50 * AT_S, 36_000)
    mib = {"replica": leaking.tolist(), "all": (leaking + 1).tolist()}
    slopes = slopes_of(AT_S.tolist(), mib, 0.25)
    assert slopes["replica"].estimate == pytest.approx(0.0, abs=1e-9)
    assert table(slopes, mib).row_count == 2
    (axes,) = draw(AT_S.tolist(), mib, slopes, Options()).axes
    assert len(axes.lines) == 2
