"""What a client keeps back of its budgets, with a fake clock and ways that are known."""

import pytest

from elastic.messages import Deadline
from elastic.way_back import WayBack

BUDGET_MS = 50.0


class Network:
    """A client whose calls take 10 ms to be answered, and whose answers take as long as they are told to return."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.way_back = WayBack()

    def call(self, way_ms: float, budget_ms: float | None = BUDGET_MS) -> float:
        """What was kept back for the call, in ms."""
        kept_ms = self.way_back.kept_ms(budget_ms)
        deadline = Deadline(budget_ms=budget_ms, timeout_s=1.0, kept_ms=kept_ms, clock=lambda: self.now_s)
        self.now_s += 0.01
        slack_ms = 1000 * deadline.left_s() - kept_ms
        self.now_s += way_ms / 1000
        self.way_back.learn(deadline, slack_ms)
        return kept_ms

    def calls(self, ways_ms: list[float]) -> list[float]:
        return [self.call(way_ms) for way_ms in ways_ms]


@pytest.fixture
def network() -> Network:
    return Network()


def test_nothing_is_kept_before_an_answer_came(network: Network) -> None:
    assert network.call(3.0) == 0.0


def test_a_steady_way_is_learned_whatever_is_kept(network: Network) -> None:
    kept_ms = network.calls([3.0] * 40)
    assert kept_ms[-1] == pytest.approx(3.0, abs=1e-3)
    assert kept_ms[:20] == sorted(kept_ms[:20])


def test_of_a_way_that_varies_most_answers_take_less_than_is_kept(network: Network) -> None:
    network.calls([1.0, 2.0, 3.0] * 20)
    kept_ms = network.calls([1.0, 2.0, 3.0] * 20)
    assert all(2.3 < kept < 3.0 for kept in kept_ms)


def test_it_is_forgotten_when_the_way_becomes_shorter(network: Network) -> None:
    network.calls([10.0] * 40)
    assert network.calls([1.0] * 100)[-1] == pytest.approx(1.0, abs=0.1)


def test_one_pause_of_a_second_is_hardly_believed(network: Network) -> None:
    network.calls([2.0] * 40)
    network.call(1_000.0)
    assert network.call(2.0) < 5.0


def test_at_most_half_of_a_budget_is_kept(network: Network) -> None:
    network.calls([40.0] * 40)
    assert network.call(40.0) == pytest.approx(25.0)
    assert network.way_back.kept_ms(10.0) == 5.0


def test_an_answer_that_comes_before_it_was_sent_says_that_clocks_differ_and_keeps_nothing(network: Network) -> None:
    network.calls([-20.0] * 40)
    assert network.call(1.0) == 0.0


def test_calls_without_a_budget_keep_nothing_and_teach_nothing(network: Network) -> None:
    assert network.call(5.0, None) == 0.0
    assert network.call(5.0) == 0.0
