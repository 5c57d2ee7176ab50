import os
import subprocess
import sys
from pathlib import Path

import pytest

from elastic.serve.config import METRICS_DIR_VARIABLE, ServeConfig
from elastic.serve.telemetry.instruments import replica_metrics, replica_records
from elastic.serve.telemetry.logs import RequestLog
from elastic.serve.telemetry.tracing import Traces


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")] + [METRICS_DIR_VARIABLE]:
        monkeypatch.delenv(name, raising=False)


def test_nothing_listens_unless_it_was_asked_for(tmp_path: Path) -> None:
    assert replica_metrics("0") is None
    assert replica_records(ServeConfig(run=tmp_path), "0") == []


def test_every_replica_logs_into_a_file_of_its_own(tmp_path: Path) -> None:
    (log,) = replica_records(ServeConfig(run=tmp_path, log_requests=tmp_path), "3")
    assert isinstance(log, RequestLog)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["requests-3.jsonl"]


def test_the_environment_turns_traces_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    (traces,) = replica_records(ServeConfig(run=tmp_path), "0")
    assert isinstance(traces, Traces)


def test_metrics_are_written_to_the_folder_that_the_server_named(tmp_path: Path) -> None:
    script = "from elastic.serve.telemetry.instruments import replica_metrics; assert replica_metrics('2')"
    environment = os.environ | {METRICS_DIR_VARIABLE: str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)
    assert {path.name.partition("_")[0] for path in tmp_path.iterdir()} == {"counter", "gauge", "histogram"}
