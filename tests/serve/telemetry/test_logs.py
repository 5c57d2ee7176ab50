import json
import logging
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from elastic.errors import ConfigError, InvalidRequest
from elastic.serve.batching import Front
from elastic.serve.observer import Outcome
from elastic.serve.telemetry.logs import JsonLines, RequestLog, log_as_json, make_folder

from .outcomes import Sent, answered, computed, refused


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


@pytest.fixture
def log(path: Path) -> Iterator[RequestLog]:
    log = RequestLog(path)
    yield log
    log.close()


def entries(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_an_answer_is_one_line_with_its_times_and_its_submodel(log: RequestLog, path: Path, front: Front) -> None:
    caller = Sent({"request_id": "r-7", "authorization": "Bearer secret"})
    log.request_finished(answered(computed(front, level=2), caller=caller))
    (entry,) = entries(path)
    assert {key: entry[key] for key in entry if key not in ("time", "level", "logger", "message")} == {
        "outcome": "met",
        "request_id": "r-7",
        "total_ms": 20.0,
        "slack_ms": 30.0,
        "slo_ms": 50.0,
        "inputs": {"image": 1},
        "preprocess_ms": 1.5,
        "queue_ms": 2.0,
        "compute_ms": 8.0,
        "predicted_ms": 7.0,
        "batch_size": 2,
        "submodels": ["L"],
        "embed_dim": 64,
        "quality": 0.5,
    }
    assert "secret" not in path.read_text()


def test_the_name_of_a_key_is_written(log: RequestLog, path: Path, front: Front) -> None:
    log.request_finished(replace(answered(computed(front)), key="mobile"))
    assert entries(path)[0]["key"] == "mobile"


def test_a_refusal_names_its_error(log: RequestLog, path: Path) -> None:
    log.request_finished(refused())
    (entry,) = entries(path)
    assert (entry["outcome"], entry["error"]) == ("refused", "Overloaded")


def test_the_content_of_a_bad_request_is_not_written(log: RequestLog, path: Path) -> None:
    error = InvalidRequest("inputs[0]", "my private words")
    log.request_finished(Outcome(None, (), error, 0.1, math.nan))
    assert "private" not in path.read_text()
    assert "slack_ms" not in entries(path)[0]


def test_a_share_is_written_and_every_fault_of_the_server(path: Path, front: Front) -> None:
    draws = iter([0.005, 0.5, 0.9])
    log = RequestLog(path, share=0.01, draw=lambda: next(draws))
    log.request_finished(answered(computed(front)))
    log.request_finished(answered(computed(front)))
    log.request_finished(Outcome(None, (), KeyError("bug"), 0.1, math.nan))
    log.close()
    assert [entry["outcome"] for entry in entries(path)] == ["met", "error"]


def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    make_folder(tmp_path / "new" / "folder")
    with pytest.raises(ConfigError, match="log_requests"):
        make_folder(tmp_path / "file" / "folder")


def test_an_error_is_one_line_with_its_traceback() -> None:
    try:
        raise KeyError("two\nlines")
    except KeyError:
        record = logging.LogRecord(
            "elastic.x", logging.ERROR, "x.py", 1, "internal error %s", ("ab12",), sys.exc_info()
        )
    line = JsonLines().format(record)
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["message"]) == ("error", "internal error ab12")
    assert "KeyError" in entry["traceback"]


def test_the_packages_logger_writes_json_to_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = logging.getLogger("elastic")
    for name in ("handlers", "propagate", "level"):
        monkeypatch.setattr(package, name, getattr(package, name))
    log_as_json()
    logging.getLogger("elastic.serve.api.grpc").error("internal error %s", "ab12")
    assert json.loads(capsys.readouterr().err)["message"] == "internal error ab12"
