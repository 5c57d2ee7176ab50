"""A server of two replicas that is changed, and stopped, while it answers callers that go on calling."""

import subprocess
import sys
from pathlib import Path

import pytest

from elastic.checkpoint import WEIGHTS
from elastic.client import Client
from elastic.errors import ServerUnavailable
from elastic.serve.app import FAREWELL_S
from tests.serve.callers import Callers
from tests.serve.conftest import ServerProcess, write_tiny_run

pytestmark = [pytest.mark.ray, pytest.mark.serve, pytest.mark.slow]


def deploy(server: ServerProcess, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "elastic", "deploy", *words, "--server", server.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def version(server: ServerProcess) -> str:
    with Client(server.address) as client:
        return client.info().model_version


def test_a_deploy_and_a_rollback_under_load_fail_no_call_and_mix_no_answer(
    running: ServerProcess, png: bytes, tmp_path: Path
) -> None:
    old = version(running)
    with Callers(running.address, png, num_attempts=1) as callers:
        forth = deploy(running, str(write_tiny_run(tmp_path / "other", seed=1)))
        new = version(running)
        callers.versions.clear()
        callers.wait_for_more()
        after_deploy = set(callers.versions)
        back = deploy(running, "--rollback")
        callers.wait_for_more()
        seen = set(callers.versions)
    assert (forth.returncode, back.returncode) == (0, 0), forth.stderr + back.stderr
    assert f"{old} -> other {new} on 2 replica(s)" in forth.stdout
    assert not callers.failures and not callers.num_mixed
    assert after_deploy <= {old, new} and new in after_deploy
    assert seen == {old, new} and version(running) == old


def test_a_broken_checkpoint_is_refused_while_calls_are_answered(
    running: ServerProcess, png: bytes, tmp_path: Path
) -> None:
    old = version(running)
    broken = write_tiny_run(tmp_path / "broken", seed=2)
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-100])
    with Callers(running.address, png, num_attempts=1) as callers:
        done = deploy(running, str(broken))
        callers.wait_for_more()
    assert done.returncode == 2
    assert f"{broken / WEIGHTS}: cannot be read" in done.stderr
    assert not callers.failures and callers.versions == {old}


@pytest.mark.last
def test_sigterm_loses_no_call_that_was_accepted(running: ServerProcess, png: bytes) -> None:
    # Each comes too rarely to hear of the end unless the server stays to tell.
    with Callers(running.address, png, num_attempts=1, pause_s=FAREWELL_S / 5) as callers:
        running.stop()
        callers.join()
    # Each caller's calls were answered until the first that was refused in so many words.
    assert len(callers.failures) == Callers.NUM
    for failure in callers.failures:
        assert isinstance(failure, ServerUnavailable) and "is shutting down" in str(failure)
