"""Windows hold what ended in them; a load is stable when three in a row agree. Time is given, never read."""

import math

import pytest

from elastic.bench.load import Outcome, Sample
from elastic.bench.windows import Windows

from .conftest import answered


def ended_at(done_ms: float, latency_ms: float = 5.0) -> Sample:
    return answered(0, done_ms - latency_ms, latency_ms)


def windows(tolerance: float = 0.1) -> Windows:
    return Windows(begin_ms=1000.0, window_ms=1000.0, tolerance=tolerance)


def test_a_window_holds_what_ended_in_it_and_not_the_warm_up():
    found = windows()
    refusal = Sample(1, 10.0, 1200.0, 1200.0, 1201.0, Outcome.REFUSED)
    late = ended_at(1500.0, latency_ms=40.0)
    found.update([ended_at(999.0), ended_at(1000.0), refusal, late, ended_at(2000.0)], 2500.0)
    (window,) = found.closed
    assert (window.begin_ms, window.end_ms, window.ended) == (1000.0, 2000.0, 3)
    assert window.throughput == 2.0
    assert window.attainment == window.refused == pytest.approx(1 / 3)
    assert window.p50_ms == 22.5


def test_a_window_is_closed_only_when_it_is_over():
    found = windows()
    found.update([ended_at(1100.0)], 1999.9)
    assert not found.closed
    found.update([ended_at(1100.0), ended_at(1999.95)], 2000.0)
    assert [window.ended for window in found.closed] == [2]


def test_a_watcher_that_slept_closes_all_windows_it_missed():
    found = windows()
    found.update([ended_at(1500.0), ended_at(3500.0)], 4000.0)
    assert [window.ended for window in found.closed] == [1, 0, 1]
    assert math.isnan(found.closed[1].p99_ms)


def feed(found: Windows, counts: list[int], latencies: list[float]) -> list[bool]:
    """Closes a window of so many answers of so long; whether it was stable after each."""
    ended, stable = [], []
    for place, (count, latency_ms) in enumerate(zip(counts, latencies, strict=True)):
        begin_ms = 1000.0 * (place + 1)
        ended += [ended_at(begin_ms + 1000.0 * n / count, latency_ms) for n in range(count)]
        stable.append(found.update(ended, begin_ms + 1000.0))
    return stable


def test_three_windows_that_agree_are_stable():
    assert feed(windows(), [50, 100, 100, 100], [5.0, 9.0, 9.0, 9.0]) == [False, False, False, True]


def test_the_tolerance_is_a_distance_from_the_mean():
    assert feed(windows(), [90, 100, 110], [5.0] * 3)[-1]
    assert not feed(windows(), [88, 100, 110], [5.0] * 3)[-1]


def test_a_tail_that_grows_is_not_stable_however_steady_the_throughput():
    assert not any(feed(windows(), [100] * 6, [10.0, 20.0, 40.0, 80.0, 160.0, 320.0]))


def test_nothing_answered_is_never_stable():
    found = windows()
    assert not found.update([], 60_000.0)
    assert len(found.closed) == 59
