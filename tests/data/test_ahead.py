import threading
from collections.abc import Iterator

import pytest

from elastic.data.ahead import ReadAhead


def test_items_come_in_order():
    assert list(ReadAhead(iter(range(50)), depth=3)) == list(range(50))


def test_it_reads_ahead_up_to_its_depth():
    made: list[int] = []
    third = threading.Event()

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    ahead = ReadAhead(items(), depth=2)
    # Two wait in the queue and the third has been made; nobody has consumed one.
    assert third.wait(timeout=60)
    assert made == [0, 1, 2]
    assert list(ahead) == list(range(10))


def test_an_error_arrives_after_the_items_before_it():
    def items() -> Iterator[int]:
        yield 1
        raise KeyError("gone")

    found = iter(ReadAhead(items(), depth=4))
    assert next(found) == 1
    with pytest.raises(KeyError, match="gone"):
        next(found)


def test_closing_early_closes_the_iterator_in_its_own_thread():
    closed_in: list[str] = []

    def items() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            closed_in.append(threading.current_thread().name)

    ahead = ReadAhead(items(), depth=1)
    assert next(iter(ahead)) == 0
    ahead.close()
    ahead.close()
    assert closed_in == ["read-ahead"]
