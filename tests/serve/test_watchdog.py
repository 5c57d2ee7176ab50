import pytest

from elastic.serve.watchdog import Watchdog


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watchdog(clock: Clock) -> Watchdog:
    return Watchdog(floor_s=5.0, factor=10.0, clock=clock)


def test_an_idle_thread_is_never_stuck(watchdog: Watchdog, clock: Clock) -> None:
    clock.now_s = 1e9
    assert not watchdog.is_stuck


@pytest.mark.parametrize(
    ("predicted_s", "allowed_s"),
    [(0.0, 5.0), (0.01, 5.0), (0.5, 5.0), (2.0, 20.0)],
    ids=["none", "short", "eq", "long"],
)
def test_work_may_take_ten_times_its_prediction_but_the_floor_at_least(
    watchdog: Watchdog, clock: Clock, predicted_s: float, allowed_s: float
) -> None:
    with watchdog.watch(predicted_s):
        clock.now_s = allowed_s
        assert not watchdog.is_stuck
        clock.now_s = allowed_s + 0.001
        assert watchdog.is_stuck


def test_a_stall_that_ends_is_forgiven(watchdog: Watchdog, clock: Clock) -> None:
    with watchdog.watch(0.0):
        clock.now_s = 100.0
        assert watchdog.is_stuck
    assert not watchdog.is_stuck


def test_work_that_fails_has_ended(watchdog: Watchdog, clock: Clock) -> None:
    with pytest.raises(KeyError), watchdog.watch(0.0):
        raise KeyError
    clock.now_s = 100.0
    assert not watchdog.is_stuck


def test_each_piece_of_work_has_an_allowance_of_its_own(watchdog: Watchdog, clock: Clock) -> None:
    for _ in range(10):
        with watchdog.watch(0.0):
            clock.now_s += 4.0
            assert not watchdog.is_stuck
