"""A server that is changed and stopped while it answers: its own process, two replicas, callers that never pause."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from elastic.checkpoint import WEIGHTS
from elastic.client import Client
from elastic.errors import ServerUnavailable
from tests.serve.conftest import ServerProcess, free_port, server_process, write_tiny_run

pytestmark = [pytest.mark.ray, pytest.mark.serve, pytest.mark.slow]

RELAXED_MS = 60_000.0
NUM_CALLERS = 4


class Callers:
    """Threads that call one after the other until told to stop, each without retries and until its first failure."""

    def __init__(self, address: str, png: bytes) -> None:
        self.address, self.png = address, png
        self.versions: set[str] = set()
        self.num_answered, self.num_mixed = 0, 0
        self.failures: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call_on) for _ in range(NUM_CALLERS)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int = 20) -> None:
        """Return after this many more answers."""
        enough = self.num_answered + count
        while self.num_answered < enough and not self.failures:
            time.sleep(0.01)

    def _call_on(self) -> None:
        with Client(self.address, num_attempts=1) as client:
            while not self._stop.is_set():
                try:
                    found = client.embed(images=[self.png] * 2, texts=["a cat"], latency_slo_ms=RELAXED_MS)
                except Exception as error:
                    self.failures.append(error)
                    return
                versions = {embedding.model_version for embedding in found}
                self.num_mixed += len(versions) > 1
                self.versions |= versions
                self.num_answered += 1


@pytest.fixture(scope="module")
def running(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of this module, because its tests change and end it."""
    flags = ["--num-replicas", "2", "--http-port", str(free_port())]
    with server_process(tiny_run, tmp_path_factory.mktemp("server"), *flags) as running:
        yield running


def deploy(running: ServerProcess, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "elastic", "deploy", *words, "--server", running.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def version(running: ServerProcess) -> str:
    with Client(running.address) as client:
        return client.info().model_version


def test_a_deploy_and_a_rollback_under_load_fail_no_call_and_mix_no_answer(
    running: ServerProcess, png: bytes, tmp_path: Path
) -> None:
    old = version(running)
    with Callers(running.address, png) as callers:
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
    with Callers(running.address, png) as callers:
        done = deploy(running, str(broken))
        callers.wait_for_more()
    assert done.returncode == 2
    assert f"{broken / WEIGHTS}: cannot be read" in done.stderr
    assert not callers.failures and callers.versions == {old}


def test_sigterm_loses_no_call_that_was_accepted(running: ServerProcess, png: bytes) -> None:
    with Callers(running.address, png) as callers:
        running.stop()
        callers.join()
    # Each caller's calls were answered until the first that was refused in so many words.
    assert len(callers.failures) == NUM_CALLERS
    for failure in callers.failures:
        assert isinstance(failure, ServerUnavailable) and "is shutting down" in str(failure)
