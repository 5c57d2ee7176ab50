"""What the kernel says of processes that the tests start."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benchmarks.serving.processes import Sampler, cpu_s, role, rss_mib, tree


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that sleeps, above one that works for a while and holds some memory."""
    child = "if os.fork() == 0:\n    held = bytearray(64 * 2**20)\n    while time.process_time() < 0.6: pass\n"
    script = f"import os, time\n{child}time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True) as process:
        yield process
        os.killpg(process.pid, 9)


def test_cpu_time_counts_processes_below(busy: subprocess.Popen[bytes]):
    # Less than it works for: the kernel counts in hundredths, rounded down. The test's own timeout ends it if the
    # child is not counted.
    while cpu_s(busy.pid) < 0.3:
        pass


def test_memory_is_read_of_every_process_below_for_as_long_as_the_block(busy: subprocess.Popen[bytes]):
    with Sampler(busy.pid, 0.01, lambda pid: {str(process.pid): rss_mib(process.pid) for process in tree(pid)}) as seen:
        while not any(max(sample.values(), default=0.0) > 64 for sample in list(seen.samples)):
            time.sleep(0.01)
    assert len(seen.at_s) == len(seen.samples) and seen.at_s == sorted(seen.at_s)
    assert max(seen.of(str(busy.pid))) < 64  # it was the child


def test_a_process_that_has_ended_is_not_there():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        while tree(process.pid):
            time.sleep(0.01)
        assert rss_mib(process.pid) == 0.0


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("ray::ServeReplica:elastic:encoder",), "ServeReplica"),
        (("ray::ServeController.listen_for_change",), "ServeController"),
        (("/opt/haproxy", "-db", "-f", "a.cfg"), "haproxy"),
        (("/usr/bin/python3", "-m", "elastic", "serve", "runs/a"), "elastic serve"),
        (("/usr/bin/python3", "-u", "/opt/ray/monitor.py", "--logs"), "monitor.py"),
    ],
)
def test_a_process_is_named_by_what_it_is_for(command: tuple[str, ...], name: str):
    assert role(command) == name
