"""The benchmark of the sender really sends, and charges what it cost."""

from benchmarks.sender_limit import measure, serving


def test_a_rate_is_sent_and_every_request_is_charged_for():
    with serving() as address:
        row = measure(address, rate=50.0, duration_s=1.0)
    assert row.requests > 20 and row.answered > 0
    assert row.cpu_ms > 0 and row.lag_ms.p50 >= 0
