"""What the benchmark of refusals says of bursts; the sending is that of a client, and tested as such."""

import pytest

from benchmarks.refusals import Row, Sent, row_of

OK, REFUSED = "OK", "RESOURCE_EXHAUSTED"


def test_a_row_counts_refusals_alone():
    bursts = [
        [Sent(OK, 100.0), Sent(REFUSED, 4.0), Sent(REFUSED, 6.0), Sent(OK, 200.0)],
        [Sent(OK, 100.0), Sent(OK, 90.0), Sent(REFUSED, 8.0), Sent("DEADLINE_EXCEEDED", 200.0)],
    ]
    row = row_of(4, bursts)
    assert row.refused == 3 / 8
    assert (row.p50_ms, row.p90_ms) == pytest.approx((6.0, 7.6))
    assert row.ms_per_request == pytest.approx((6.0 + 8.0) / 2 / 4)


def test_a_burst_that_is_answered_has_no_times_of_refusals():
    assert row_of(2, [[Sent(OK, 1.0), Sent(OK, 1.0)]]) == Row(2, 0.0)
