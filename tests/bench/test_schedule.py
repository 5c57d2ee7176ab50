"""Arrivals from files and objectives from weights."""

from pathlib import Path

import numpy as np
import pytest

from elastic.bench.schedule import mix, read_intervals, warmed_up
from elastic.errors import ConfigError, DataError


def test_a_file_gives_its_arrivals_and_may_have_remarks(tmp_path: Path):
    path = tmp_path / "trace.txt"
    path.write_text("# recorded on Monday\n0\n\n12.5\n  12.5\n1e3\n", encoding="utf-8")
    assert read_intervals(path).tolist() == [0.0, 12.5, 12.5, 1000.0]


@pytest.mark.parametrize("text", ["", "# nothing\n", "1\nsoon\n", "5\n4\n", "-1\n", "nan\n", "1\ninf\n"])
def test_a_file_that_is_no_schedule_is_refused(text: str, tmp_path: Path):
    (tmp_path / "trace.txt").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="one a line"):
        read_intervals(tmp_path / "trace.txt")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError):
        read_intervals(tmp_path / "none.txt")


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
