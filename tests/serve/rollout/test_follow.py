import asyncio
import logging
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from elastic.checkpoint import WEIGHTS
from elastic.errors import CheckpointError
from elastic.serve.config import ServeConfig
from elastic.serve.observer import Observer
from elastic.serve.resident import ResidentModel, weights_version
from elastic.serve.rollout.follow import Follower, Following
from elastic.serve.rollout.release import Release, Releases
from elastic.serve.served import Served
from tests.serve.conftest import service_of


class Replica:
    """A service that follows releases of models that are in memory already, and what it has loaded."""

    def __init__(self, folder: Path, tiny_run: Path, models: Sequence[ResidentModel]) -> None:
        self.releases = Releases(folder)
        self.config = ServeConfig(run=tiny_run)
        self.first = self.releases.copy(tiny_run)
        self.releases.publish(self.first)
        self._models = {model.version: model for model in models}
        self.service = service_of(models[0], replace(self.config, run=self.first.run))
        self.loaded: list[int] = []
        self.follower = Follower(self.service, self.releases, self.first, self.load)

    def load(self, release: Release) -> Served:
        self.loaded.append(release.number)
        model = self._models[weights_version(release.run / WEIGHTS)]
        return Served.of(model, replace(self.config, run=release.run), Observer())


@pytest.fixture
def replica(tmp_path: Path, tiny_run: Path, tiny_model: ResidentModel, other_model: ResidentModel) -> Replica:
    folder = tmp_path / "releases"
    folder.mkdir()
    return Replica(folder, tiny_run, [tiny_model, other_model])


@pytest.fixture
def other(replica: Replica, other_run: Path) -> Release:
    """A release that is not published yet."""
    return replica.releases.copy(other_run)


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
    answered = threading.Event()

    def load_late(release: Release) -> Served:
        assert answered.wait(60)
        return replica.load(release)

    follower = Follower(replica.service, replica.releases, replica.first, load_late)
    replica.releases.publish(other)

    async def canary_while_following() -> Following:
        task = asyncio.create_task(follower.follow())
        await asyncio.sleep(0)
        assert await replica.service.canary()
        answered.set()
        return await task

    assert asyncio.run(canary_while_following()).number == 2


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
    def load(release: Release) -> Served:
        return Served.load(replace(replica.config, run=release.run), Observer())

    follower = Follower(replica.service, replica.releases, replica.first, load)
    (other.run / WEIGHTS).write_bytes(b"damaged")
    replica.releases.publish(other)
    with caplog.at_level(logging.CRITICAL):
        assert asyncio.run(follower.follow()).problem
    replica.releases.publish(replica.first)
    assert asyncio.run(follower.follow()) == Following(1, replica.service.served.version)


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
