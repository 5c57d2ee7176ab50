"""Loads that make no sense are refused; samples keep their order, their spans, and their file."""

from pathlib import Path

import numpy as np
import pytest

from elastic.bench.load import Load, Outcome, Sample, Samples
from elastic.errors import ConfigError, DataError

from .conftest import answered, samples

SLO = np.full(2, 10.0)
OPEN: dict = {"address": "a", "contents": ["x"], "slo_ms": SLO, "at_ms": np.array([0.0, 5.0])}


@pytest.mark.parametrize(
    "wrong",
    [
        {"contents": []},
        {"slo_ms": np.array([10.0, 0.0])},
        {"slo_ms": np.empty(0), "at_ms": np.empty(0)},
        {"at_ms": np.array([5.0, 0.0])},
        {"at_ms": np.array([-1.0, 0.0])},
        {"at_ms": np.zeros(2)},
        {"at_ms": None},
        {"at_ms": None, "concurrency": 2},
        {"concurrency": 2},
        {"connections": 0},
        {"grace_ms": -1.0},
    ],
    ids=str,
)
def test_a_load_that_makes_no_sense_is_refused(wrong: dict):
    with pytest.raises(ConfigError):
        Load(**OPEN | wrong)


def test_a_load_lasts_until_its_last_request_or_as_long_as_it_says():
    assert Load(**OPEN).span_ms == 5.0
    assert Load(**OPEN, duration_ms=20.0).span_ms == 20.0
    assert Load(address="a", contents=["x"], slo_ms=SLO, concurrency=1, duration_ms=7.0).span_ms == 7.0


def test_samples_are_in_the_order_in_which_they_were_to_be_sent():
    found = samples(answered(2, 30.0, 1.0), answered(0, 10.0, 50.0), answered(1, 20.0, 5.0))
    assert found.number.tolist() == [0, 1, 2]
    assert found.latency_ms.tolist() == [50.0, 5.0, 1.0]


def test_only_an_answer_within_the_objective_is_met():
    refusal = Sample(2, 10.0, 0.0, 0.0, 1.0, Outcome.REFUSED)
    found = samples(answered(0, 0.0, 10.0), answered(1, 0.0, 10.5), refusal, Sample(3, 10.0, 0.0))
    assert found.met.tolist() == [True, False, False, False]


def test_lag_is_part_of_the_latency():
    found = samples(answered(0, 10.0, 8.0, sent_ms=13.0))
    assert (found.lag_ms[0], found.latency_ms[0]) == (3.0, 8.0)


def test_a_span_keeps_what_was_intended_in_it_and_knows_its_length():
    found = samples(*(answered(n, 100.0 * n, 1.0) for n in range(10))).between(200.0, 500.0)
    assert found.number.tolist() == [2, 3, 4, 5]
    assert (found.begin_ms, found.end_ms, found.duration_ms) == (200.0, 500.0, 300.0)


def test_a_file_of_samples_reads_back_equal(tmp_path: Path):
    rows = (answered(0, 0.0, 4.0), Sample(1, 20.0, 5.0, 6.0, 7.0, Outcome.REFUSED, "Overloaded"))
    before = Samples.of(rows, 1000.0, {"Overloaded": "full"}, 0.5)
    before.save(tmp_path / "samples.parquet")
    after = Samples.load(tmp_path / "samples.parquet")
    for name in Samples.__slots__:
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), strict=name in Sample.__slots__)


def test_another_file_is_not_taken_for_samples(tmp_path: Path):
    (tmp_path / "other.parquet").write_bytes(b"no")
    for name in ("other.parquet", "none.parquet"):
        with pytest.raises(DataError, match="holds no samples"):
            Samples.load(tmp_path / name)
