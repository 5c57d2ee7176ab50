from collections.abc import Callable

import numpy as np
import pytest

from elastic.data.backgrounds import KINDS, MAX_GRAIN, VALUE_CONTRAST, draw_background


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_kind_mixes_two_colours_in_shares(kind: Callable[[np.random.Generator, int], np.ndarray]):
    for seed in range(50):
        shares = kind(np.random.default_rng(seed), 64)
        assert shares.shape == (64, 64)
        assert 0 <= shares.min() <= shares.max() <= 1
        assert shares.max() - shares.min() > 0.5


def test_a_ramp_runs_from_the_first_colour_to_the_second_in_equal_steps():
    shares = KINDS[0](np.random.default_rng(1), 32)
    assert (shares.min(), shares.max()) == (0, 1)
    assert np.diff(shares, axis=0) == pytest.approx(shares[1, 0] - shares[0, 0])
    assert np.diff(shares, axis=1) == pytest.approx(shares[0, 1] - shares[0, 0])


def test_a_background_follows_from_the_generator_alone():
    first, again, other = (draw_background(np.random.default_rng(seed), 64) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_backgrounds_are_calm_and_of_many_colours():
    drawn = np.stack([draw_background(np.random.default_rng(seed), 64) for seed in range(200)])
    assert 0 <= drawn.min() <= drawn.max() <= 255
    # The brightest channel is the value of HSV.
    values = drawn.max(3).reshape(200, -1)
    assert np.ptp(values, axis=1).max() <= 255 * VALUE_CONTRAST[1] + 10 * MAX_GRAIN
    means = drawn.mean((1, 2))
    assert means.std(0).min() > 25
