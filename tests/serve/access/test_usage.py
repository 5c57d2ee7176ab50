"""Several real processes that count together; what one process counts is tested through its gate."""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from elastic.errors import RateLimited
from elastic.serve.access.keys import ApiKey, create_key
from elastic.serve.access.usage import RECORD, Usage

SPAWN = multiprocessing.get_context("spawn")  # as Ray starts its workers: nothing is inherited
NEVER = 1e-9
"""A rate at which no token comes back while a test runs."""


def key(name: str, **limits: float) -> ApiKey:
    return create_key(name, **limits)[0]  # type: ignore[arg-type]


def serve(usage: Path, orders: Connection) -> None:
    """A replica: starts as many requests of a key as it is told, and says how many were let in; an int ends as many."""
    counted = Usage(usage)
    working: list[ExitStack] = []
    while (order := orders.recv()) is not None:
        asked, number = order
        if asked is None:
            for _ in range(number):
                working.pop().close()
            orders.send(number)
            continue
        admitted = 0
        for _ in range(number):
            with ExitStack() as stack:
                try:
                    stack.enter_context(counted.count(asked))
                except RateLimited:
                    continue
                working.append(stack.pop_all())
                admitted += 1
        orders.send(admitted)


class Replica:
    """A process that runs `serve`."""

    def __init__(self, usage: Path) -> None:
        self.orders, theirs = SPAWN.Pipe()
        self.process = SPAWN.Process(target=serve, args=(usage, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, asked: ApiKey, number: int) -> None:
        self.orders.send((asked, number))

    def start(self, asked: ApiKey, number: int) -> int:
        self.ask(asked, number)
        return self.orders.recv()

    def end(self, number: int) -> None:
        self.orders.send((None, number))
        assert self.orders.recv() == number

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


@pytest.fixture(scope="module")
def usage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server") / "usage"


@pytest.fixture(scope="module")
def replicas(usage: Path) -> Iterator[tuple[Replica, Replica]]:
    pair = Replica(usage), Replica(usage)
    yield pair
    for replica in pair:
        replica.kill()


def test_two_replicas_share_a_bucket_however_they_hurry(replicas: tuple[Replica, Replica]) -> None:
    mobile = key("mobile", rate=NEVER, burst=500)
    for replica in replicas:
        replica.ask(mobile, 400)
    admitted = [replica.orders.recv() for replica in replicas]
    assert sum(admitted) == 500
    for replica, number in zip(replicas, admitted, strict=True):
        replica.end(number)


def test_requests_at_once_are_those_of_all_replicas(replicas: tuple[Replica, Replica]) -> None:
    first, second = replicas
    mobile, desktop = key("mobile", concurrency=5), key("desktop", concurrency=5)
    assert (first.start(mobile, 3), second.start(mobile, 3), first.start(mobile, 1)) == (3, 2, 0)
    assert second.start(desktop, 9) == 5  # another key has places of its own
    second.end(5)
    first.end(1)
    assert (second.start(mobile, 2), first.start(mobile, 1)) == (1, 0)
    first.end(2)
    second.end(3)
    assert first.start(mobile, 9) == 5
    first.end(5)


def test_what_a_killed_replica_had_at_work_is_free_and_its_tokens_stay_spent(
    usage: Path, replicas: tuple[Replica, Replica]
) -> None:
    killed, (other, _) = Replica(usage), replicas
    mobile = key("mobile", rate=NEVER, burst=5, concurrency=3)
    assert (killed.start(mobile, 9), other.start(mobile, 9)) == (3, 0)
    killed.kill()
    assert other.start(mobile, 9) == 2
    other.end(2)


def test_a_replica_that_starts_later_finds_the_records_that_are_there(
    usage: Path, replicas: tuple[Replica, Replica]
) -> None:
    keys = [key(f"key {number}", rate=NEVER, burst=2) for number in range(20)]
    assert [replicas[0].start(one, 1) for one in keys] == [1] * 20
    records = usage.stat().st_size / RECORD.size
    late = Replica(usage)
    assert [late.start(one, 2) for one in reversed(keys)] == [1] * 20
    assert usage.stat().st_size / RECORD.size == records
    late.kill()
    replicas[0].end(20)


def test_the_file_is_private_and_a_count_without_one_is_its_own(usage: Path) -> None:
    assert usage.stat().st_mode & 0o077 == 0
    mobile = key("mobile", rate=NEVER, burst=1)
    for alone in (Usage(), Usage()):
        with alone.count(mobile):
            pass
        with pytest.raises(RateLimited, match="above its"), alone.count(mobile):
            pass
