import pytest

from elastic.data.weights import WeightBook, check_weights
from elastic.errors import ConfigError


def test_a_resumed_adaptive_run_goes_on_with_its_weights():
    book = WeightBook((1.0, 1.0), {1: (1.0, 2.0)}, is_adaptive=True)
    assert [book.get(segment) for segment in range(3)] == [(1.0, 1.0), (1.0, 2.0), None]
    book.set(2, (3.0, 4.0))
    assert book.get(2) == (3.0, 4.0)


def test_a_run_that_is_not_adaptive_uses_the_newest_weights_so_far():
    book = WeightBook((1.0, 1.0), {1: (1.0, 2.0), 3: (0.0, 1.0)}, is_adaptive=False)
    assert [book.get(segment) for segment in range(5)] == [(1.0, 1.0), (1.0, 2.0), (1.0, 2.0), (0.0, 1.0), (0.0, 1.0)]


def test_weights_that_are_set_must_fit_the_streams_and_come_in_turn():
    book = WeightBook((1.0, 1.0), {}, is_adaptive=True)
    with pytest.raises(ConfigError, match="needs 2 finite weights"):
        book.set(1, (1.0,))
    with pytest.raises(ConfigError, match="must be 1, the next one"):
        book.set(2, (1.0, 1.0))
    assert book.by_segment == {}


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), (0.0, 0.0), (1.0, -1.0), (1.0, float("nan"))])
def test_unusable_weights_are_refused(weights: tuple[float, ...]):
    with pytest.raises(ConfigError, match="needs 2 finite weights"):
        check_weights(weights, 2)
