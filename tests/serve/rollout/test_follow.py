import asyncio
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from elastic.checkpoint import WEIGHTS
from elastic.errors import CheckpointError
from elastic.serve.api.service import EmbeddingService
from elastic.serve.config import ServeConfig
from elastic.serve.observer import Observer
from elastic.serve.rollout.follow import Follower, Following
from elastic.serve.rollout.release import Release, Releases
from elastic.serve.served import Served
from tests.serve.conftest import write_tiny_run


class Replica:
    """A service that follows releases, and what it has loaded."""

    def __init__(self, folder: Path, tiny_run: Path) -> None:
        self.releases = Releases(folder)
        self.config = ServeConfig(run=tiny_run)
        self.first = self.releases.copy(tiny_run)
        self.releases.publish(self.first)
        self.service = EmbeddingService.load(replace(self.config, run=self.first.run))
        self.loaded: list[int] = []
        self.follower = Follower(self.service, self.releases, self.first, self.load)

    def load(self, release: Release) -> Served:
        self.loaded.append(release.number)
        return Served.load(replace(self.config, run=release.run), Observer())


@pytest.fixture
def replica(tmp_path: Path, tiny_run: Path) -> Replica:
    folder = tmp_path / "releases"
    folder.mkdir()
    return Replica(folder, tiny_run)


@pytest.fixture
def other(replica: Replica, tmp_path: Path) -> Release:
    """A release that is not published yet."""
    return replica.releases.copy(write_tiny_run(tmp_path / "other", seed=1))


def test_nothing_is_loaded_while_nothing_changes(replica: Replica) -> None:
    following = asyncio.run(replica.follower.follow())
    assert following == Following(1, replica.service.served.version)
    assert replica.loaded == []


def test_what_is_published_is_served(replica: Replica, other: Release) -> None:
    old = replica.service.served
    replica.releases.publish(other)
    following = asyncio.run(replica.follower.follow())
    assert following == Following(2, replica.service.served.version)
    assert replica.service.served is not old


def test_two_that_follow_at_once_load_once(replica: Replica, other: Release) -> None:
    replica.releases.publish(other)

    async def both() -> list[Following]:
        return await asyncio.gather(replica.follower.follow(), replica.follower.follow())

    one, two = asyncio.run(both())
    assert one == two and replica.loaded == [2]


def test_calls_are_answered_while_another_model_loads(replica: Replica, other: Release) -> None:
    replica.releases.publish(other)

    async def canary_while_following() -> tuple[bool, bool]:
        task = asyncio.create_task(replica.follower.follow())
        await asyncio.sleep(0)
        answered = await replica.service.canary()
        early = not task.done()
        await task
        return answered, early

    assert asyncio.run(canary_while_following()) == (True, True)


@pytest.mark.parametrize("error", [CheckpointError("x", "is damaged", "restore it"), MemoryError("no room")])
def test_what_cannot_be_loaded_is_refused_once_and_the_old_model_goes_on(
    replica: Replica, other: Release, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    old = replica.service.served

    def broken(release: Release) -> Served:
        replica.loaded.append(release.number)
        raise error

    follower = Follower(replica.service, replica.releases, replica.first, broken)
    replica.releases.publish(other)

    async def follow_twice() -> list[Following]:
        return [await follower.follow(), await follower.follow()]

    with caplog.at_level(logging.CRITICAL):
        one, two = asyncio.run(follow_twice())
    assert one == two
    assert one.number == 1 and str(error) in one.problem
    assert replica.loaded == [2]
    assert replica.service.served is old and asyncio.run(replica.service.canary())


def test_a_refusal_is_forgotten_when_the_old_release_is_published_again(
    replica: Replica, other: Release, caplog: pytest.LogCaptureFixture
) -> None:
    (other.run / WEIGHTS).write_bytes(b"damaged")
    replica.releases.publish(other)
    with caplog.at_level(logging.CRITICAL):
        assert asyncio.run(replica.follower.follow()).problem
    replica.releases.publish(replica.first)
    assert asyncio.run(replica.follower.follow()) == Following(1, replica.service.served.version)


def test_keeping_up_does_not_wait_and_gets_there(replica: Replica, other: Release) -> None:
    replica.releases.publish(other)

    async def keep_up() -> list[int]:
        replica.follower.keep_up()
        replica.follower.keep_up()
        before = list(replica.loaded)
        while (await replica.follower.follow()).number != 2:
            await asyncio.sleep(0)
        return before

    assert asyncio.run(keep_up()) == []
    assert replica.loaded == [2]
