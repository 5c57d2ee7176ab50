import os
import socket
import subprocess
import sys
import time
import urllib.request
from math import isnan
from pathlib import Path

import pytest

from elastic.client import Client
from elastic.errors import ConfigError, InvalidRequest, SloInfeasible
from elastic.serve.telemetry.exporter import exporting, is_running
from elastic.serve.telemetry.snapshot import Interval, Snapshot
from tests.serve.conftest import free_port

WRITER = """
import os, sys
from prometheus_client import CollectorRegistry
from elastic.serve.telemetry.metrics import Metrics
from elastic.serve.observer import Outcome
from elastic.errors import InvalidRequest
metrics = Metrics(CollectorRegistry(), sys.argv[1])
metrics.request_finished(Outcome(None, (), InvalidRequest("inputs", "is empty"), 0.1, float("nan")))
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def start_writer(directory: Path, replica: str) -> subprocess.Popen[str]:
    """A process that counts one invalid request, and lives until its input ends."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(directory)}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, replica],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert writer.stdout is not None and writer.stdout.readline()
    return writer


def end(writer: subprocess.Popen[str]) -> None:
    writer.communicate()
    assert writer.returncode == 0


def page(url: str) -> list[str]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode().splitlines()


def test_one_page_shows_all_replicas_and_keeps_the_counts_of_those_that_ended(tmp_path: Path) -> None:
    with exporting(tmp_path, "127.0.0.1", free_port()) as url:
        first, second = start_writer(tmp_path, "0"), start_writer(tmp_path, "1")
        assert 'elastic_requests_total{outcome="invalid",replica="0"} 1.0' in page(url)
        assert 'elastic_requests_total{outcome="invalid",replica="1"} 1.0' in page(url)
        end(first)
        heir = start_writer(tmp_path, "0")
        shown = page(url)
        end(heir)
        end(second)
    assert 'elastic_requests_total{outcome="invalid",replica="0"} 2.0' in shown
    assert 'elastic_waiting_inputs{replica="0"} 0.0' in shown


def test_gauges_of_a_replica_end_with_it(tmp_path: Path) -> None:
    with exporting(tmp_path, "127.0.0.1", free_port()) as url:
        writer = start_writer(tmp_path, "0")
        assert 'elastic_waiting_inputs{replica="0"} 0.0' in page(url)
        end(writer)
        assert not [line for line in page(url) if line.startswith("elastic_waiting_inputs")]


def test_a_taken_port_is_an_error_that_names_the_flag(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with (
            pytest.raises(ConfigError, match="--metrics-port"),
            exporting(tmp_path, "127.0.0.1", taken.getsockname()[1]),
        ):
            pass


def test_this_process_runs_and_one_that_ended_does_not() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_running(os.getpid()) and not is_running(ended.pid)


@pytest.mark.serve
@pytest.mark.slow
def test_a_server_shows_what_became_of_its_requests(server: str, metrics_port: int, png: bytes) -> None:
    url = f"http://127.0.0.1:{metrics_port}/metrics"
    before = snapshot(url)
    with Client(server) as client:
        client.embed(images=[png], latency_slo_ms=60_000.0)
        with pytest.raises(InvalidRequest):
            client.embed(images=[b"junk"], latency_slo_ms=60_000.0)
        with pytest.raises(SloInfeasible):
            client.embed(images=[png], latency_slo_ms=20.0)
    more = Interval(before, snapshot(url))
    outcomes = {outcome: extra for outcome, extra in more.by("outcome", "elastic_requests_total").items() if extra}
    assert outcomes == {"met": 1.0, "invalid": 1.0, "infeasible": 1.0}
    assert more.by("granularity", "elastic_submodel_inputs_total", modality="image")["XL"] == 1.0
    until_s = time.monotonic() + 30
    while all(isnan(ratio) for ratio in values(snapshot(url), "elastic_slo_attainment_ratio")):
        assert time.monotonic() < until_s, "nobody samples the gauges"
        time.sleep(0.2)
    command = [sys.executable, "-m", "elastic", "top", url, "--once"]
    screen = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "infeasible" in screen and "image XL" in screen


def snapshot(url: str) -> Snapshot:
    return Snapshot.parse("\n".join(page(url)) + "\n", time.time())


def values(snapshot: Snapshot, name: str) -> list[float]:
    """A gauge of each replica."""
    return [value for (found, _), value in snapshot.values.items() if found == name]
