"""What Serve and a deploy ask of a replica, without Serve."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from elastic.errors import ServerUnavailable
from elastic.serve.api.health import Health
from elastic.serve.api.service import EmbeddingService
from elastic.serve.config import ServeConfig
from elastic.serve.lifecycle import SWITCH_S, ReplicaLifecycle, settle_process
from elastic.serve.resident import ResidentModel
from elastic.serve.rollout.follow import Follower
from elastic.serve.rollout.release import Releases
from tests.serve.conftest import service_of


class Replica(ReplicaLifecycle[EmbeddingService]):
    """One whose canary answers as it is told."""

    def __init__(self, folder: Path, run: Path, model: ResidentModel) -> None:
        releases = Releases(folder)
        releases.publish(release := releases.copy(run))
        self.is_canary_well = True
        self._service = service_of(model, ServeConfig(run=run))
        self._health = Health(self.canary, max_age_s=-1.0)  # every probe asks
        self._follower = Follower(self._service, releases, release, lambda other: pytest.fail("nothing is deployed"))

    async def canary(self) -> bool:
        return self.is_canary_well


@pytest.fixture
def replica(tmp_path: Path, tiny_run: Path, tiny_model: ResidentModel) -> Replica:
    (tmp_path / "releases").mkdir()
    return Replica(tmp_path / "releases", tiny_run, tiny_model)


def test_a_replica_whose_canary_fails_is_reported_and_takes_no_calls(replica: Replica) -> None:
    async def probe() -> None:
        await replica.check_health()
        replica.is_canary_well = False
        with pytest.raises(RuntimeError, match="canary"):
            await replica.check_health()

    asyncio.run(probe())
    with pytest.raises(ServerUnavailable, match="does not answer as it should"):
        replica._service._check_accepting()


def test_a_draining_replica_is_unhealthy_for_callers_and_well_for_serve(replica: Replica) -> None:
    async def drain() -> None:
        assert await replica.drain(1.0) == 0
        await replica.check_health()

    asyncio.run(drain())
    with pytest.raises(ServerUnavailable, match="shutting down"):
        replica._service._check_accepting()


def test_following_says_what_is_served(replica: Replica, tiny_model: ResidentModel) -> None:
    assert asyncio.run(replica.follow()).version == tiny_model.version


def test_what_is_deleted_stops_computing(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(replica._service, "close", lambda: closed.append(True))
    replica.__del__()
    assert closed == [True]


def test_what_failed_to_start_can_be_deleted() -> None:
    Replica.__new__(Replica).__del__()


@pytest.fixture
def process_settings() -> Iterator[None]:
    threads, switch_s = torch.get_num_threads(), sys.getswitchinterval()
    yield
    torch.set_num_threads(threads)
    sys.setswitchinterval(switch_s)


@pytest.mark.usefixtures("process_settings")
def test_a_process_gets_its_threads(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elastic.serve.lifecycle.log_as_json", lambda: None)  # it is this process's for good
    settle_process(ServeConfig(run=tiny_run, num_threads=1))
    assert torch.get_num_threads() == 1
    assert sys.getswitchinterval() == pytest.approx(SWITCH_S)
