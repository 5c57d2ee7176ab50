"""Whatever the error of predictions is, few promises break; and no more headroom is kept than that takes."""

import numpy as np
import pytest

from elastic.serve.policies.headroom import Headroom


def test_a_broken_promise_raises_it_and_kept_ones_lower_it():
    headroom = Headroom()
    headroom.observe(num_kept=3, num_broken=1, now_ms=0.0)
    assert headroom.at(0.0) == pytest.approx(1.15 + 0.02 * (0.995 - 3 * 0.005))
    headroom.observe(num_kept=196, num_broken=0, now_ms=0.0)
    assert headroom.at(0.0) == pytest.approx(1.15)  # 199 kept ones outweigh a broken one


@pytest.mark.parametrize("spread", [0.03, 0.1, 0.15])
def test_in_the_long_run_one_promise_in_two_hundred_breaks(spread: float):
    ratios = np.exp(spread * np.random.default_rng(0).standard_normal(40_000))  # of measured to predicted times
    headroom, num_broken, values = Headroom(), 0, []
    for count, ratio in enumerate(ratios):
        broken = bool(ratio > headroom.at(0.0))
        headroom.observe(num_kept=not broken, num_broken=broken, now_ms=0.0)
        if count >= 10_000:
            num_broken += broken
            values.append(headroom.at(0.0))
    assert num_broken / 30_000 == pytest.approx(0.005, rel=0.1)
    assert np.mean(values) == pytest.approx(np.quantile(ratios, 0.995), rel=0.06)


def test_it_stays_between_its_bounds():
    headroom = Headroom()
    headroom.observe(num_kept=0, num_broken=1000, now_ms=0.0)
    assert headroom.at(0.0) == Headroom.HIGHEST
    headroom.observe(num_kept=100_000, num_broken=0, now_ms=0.0)
    assert headroom.at(0.0) == Headroom.LOWEST


def test_it_returns_to_its_start_with_a_half_life():
    for start, broken in ((1.15, 5), (1.0, 5), (1.3, 0)):
        headroom = Headroom(start)
        headroom.observe(num_kept=100 * (not broken), num_broken=broken, now_ms=500.0)
        learned = headroom.at(500.0)
        assert abs(learned - start) > 0.005
        assert headroom.at(400.0) == learned  # a clock that is behind undoes nothing
        half_later = 500.0 + Headroom.HALF_LIFE_MS
        assert headroom.at(half_later) - start == pytest.approx((learned - start) / 2)
        assert headroom.at(1e9) == pytest.approx(start)
