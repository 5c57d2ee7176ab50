import pytest

from elastic.retry import Retries

FOREVER = 1e9


def retries(draw: float = 0.0, **settings: float) -> Retries:
    return Retries(draw=lambda: draw, **settings)  # type: ignore[arg-type]


def pauses(policy: Retries, count: int) -> list[float | None]:
    return [policy.pause_s(attempt, FOREVER) for attempt in range(1, count + 1)]


def test_pauses_double_up_to_the_longest() -> None:
    policy = retries(draw=1.0, num_attempts=9, first_pause_s=0.02, longest_pause_s=0.1)
    assert pauses(policy, 5) == pytest.approx([0.02, 0.04, 0.08, 0.1, 0.1])


@pytest.mark.parametrize(("draw", "pause_s"), [(0.0, 0.01), (0.5, 0.015), (1.0, 0.02)])
def test_a_pause_is_drawn_between_half_and_the_whole(draw: float, pause_s: float) -> None:
    assert retries(draw, first_pause_s=0.02).pause_s(1, FOREVER) == pytest.approx(pause_s)


def test_the_last_attempt_is_not_repeated() -> None:
    assert pauses(retries(num_attempts=3), 3)[1:] == [pytest.approx(0.02), None]
    assert pauses(retries(num_attempts=1), 1) == [None]


def test_a_pause_that_would_end_after_the_budget_is_not_made() -> None:
    assert retries(first_pause_s=0.02).pause_s(1, 0.01) is None
    assert retries(first_pause_s=0.02).pause_s(1, 0.011) == pytest.approx(0.01)


def test_what_is_not_repeated_is_not_paid_for() -> None:
    policy = retries(num_saved=1.0, share=0.0)
    assert policy.pause_s(1, 0.0) is None
    assert policy.pause_s(1, FOREVER) is not None


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_repetitions_never_exceed_the_share_of_calls_and_what_was_saved(share: float) -> None:
    policy, num_repeated = retries(share=share, num_saved=5.0), 0
    for _ in range(1_000):
        policy.call_began()
        for attempt in (1, 2, 3):
            if policy.pause_s(attempt, FOREVER) is None:
                break
            num_repeated += 1
    assert 1_000 * share <= num_repeated + 1e-6 <= 1_000 * share + 5 + 1e-3


def test_quiet_times_save_up_to_the_limit_only() -> None:
    policy = retries(share=0.5, num_saved=2.0)
    for _ in range(100):
        policy.call_began()
    granted = [policy.pause_s(1, FOREVER) for _ in range(4)]
    assert [pause_s is not None for pause_s in granted] == [True, True, False, False]
