import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from elastic.errors import Overloaded
from elastic.serve.config import METRICS_DIR_VARIABLE, ServeConfig
from elastic.serve.generation.choice import Choice, Option, TokenSlo
from elastic.serve.generation.engine import Running
from elastic.serve.generation.instruments import fields, generation_log, generation_metrics
from elastic.serve.generation.observer import GenerationOutcome
from elastic.serve.policy import Limit
from elastic.submodel import Submodel
from tests.serve.generation.conftest import Written, a_job, a_step


def outcome() -> GenerationOutcome:
    choice = Choice(Option(Submodel((64, 64)), "XL", 3.0, 1.0), 12.0, Limit.NONE)
    running = Running(a_job(slo=TokenSlo(25.0)), choice, Written([a_step([1]), a_step([2], "length", 2, 1)]), 2)
    for now_ms, step in zip((10.0, 30.0), running.generation, strict=True):
        running.take(step, now_ms)
    return GenerationOutcome(running.job, running, None, 31.0, key="mobile")


def test_nothing_listens_unless_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(METRICS_DIR_VARIABLE, raising=False)
    assert generation_metrics("0") is None
    assert generation_log(ServeConfig(run=tmp_path), "0") is None


def test_metrics_are_written_to_the_folder_that_the_server_named(tmp_path: Path) -> None:
    script = "from elastic.serve.generation.instruments import generation_metrics; assert generation_metrics('2')"
    environment = os.environ | {METRICS_DIR_VARIABLE: str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)
    assert {path.name.partition("_")[0] for path in tmp_path.iterdir()} == {"counter", "gauge", "histogram"}


def test_a_request_is_a_line_without_its_text(tmp_path: Path) -> None:
    log = generation_log(ServeConfig(run=tmp_path, log_requests=tmp_path), "3")
    assert log is not None
    log.request_finished(outcome())
    log.close()
    line = json.loads((tmp_path / "requests-3.jsonl").read_text())
    assert line["message"] == line["outcome"] == "met"
    assert (line["prompt_tokens"], line["generation_tokens"], line["submodel"]) == (2, 2, "XL")
    assert (line["slo_token_ms"], line["token_ms"], line["predicted_token_ms"]) == (25.0, 20.0, 12.0)
    assert (line["drafts"], line["draft_tokens"], line["accepted_tokens"]) == (1, 2, 1)
    assert (line["first_token_ms"], line["total_ms"], line["key"], line["sequences"]) == (10.0, 31.0, "mobile", 2)


def test_what_is_not_known_of_a_request_is_left_out() -> None:
    refused = GenerationOutcome(a_job(), None, Overloaded("full", 1.0), 0.5)
    assert fields(refused) == {"outcome": "refused", "total_ms": 0.5, "prompt_tokens": 2, "error": "Overloaded"}
    assert fields(GenerationOutcome(None, None, Overloaded("full", 1.0), 0.5)) == {
        "outcome": "refused",
        "total_ms": 0.5,
        "error": "Overloaded",
    }
