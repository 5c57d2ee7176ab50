"""What a load's report says on the terminal and in JSON."""

import io
import json
import re

import pytest
from rich.console import Console

from elastic.bench.load import Outcome, Sample, Samples
from elastic.bench.report import as_json, json_values, print_report, services, stability
from elastic.bench.summary import summarise
from elastic.bench.windows import Window

from .conftest import answered, samples

REFUSED = Sample(2, 50.0, 20.0, 20.0, 22.5, Outcome.REFUSED, "Overloaded", "image")
LOST = Sample(3, 50.0, 30.0, 30.0, 1080.0, Outcome.UNANSWERED, "DEADLINE_EXCEEDED", "image")
TWO_SLOS = (answered(0, 0.0, 4.0), answered(1, 10.0, 30.0, slo_ms=50.0, granularity="XL"), REFUSED, LOST)


def shown(found: Samples, messages: dict[str, str] | None = None, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO())
    print_report(console, "a load", summarise(found), messages or {})
    return console.file.getvalue()  # type: ignore[attr-defined]


def line(text: str, word: str) -> list[str]:
    (one,) = [row for row in text.splitlines() if row.strip().startswith(word)]
    return one.split()


def test_a_line_per_objective_and_one_for_all():
    text = shown(samples(*TWO_SLOS))
    assert line(text, "10 ms")[2:5] == ["1", "100.0%", "1.0"]
    assert " ".join(line(text, "50 ms")) == "50 ms 3 33.3% 1.0 0.500 / 0.167 30.0 / 30.0 33.3% 33.3%"
    assert " ".join(line(text, "all")) == "all 4 50.0% 2.0 0.500 / 0.250 17.0 / 29.7 25.0% 25.0%"


def test_one_objective_needs_no_sum():
    assert services("a load", summarise(samples(answered(0, 0.0, 4.0)))).row_count == 1


def test_images_and_texts_have_lines_of_their_own():
    text = shown(samples(answered(0, 0.0, 4.0), answered(1, 0.0, 14.0, modality="text", quality=0.1)))
    assert line(text, "image")[:3] == ["image", "1", "100.0%"]
    assert line(text, "text")[:3] == ["text", "1", "0.0%"]
    assert line(text, "all")[:3] == ["all", "2", "50.0%"]


def test_large_numbers_fit_eighty_columns():
    rows = [answered(n, n / 100, 12_345.6, slo_ms=1000.0) for n in range(10_000)]
    text = shown(samples(*rows, end_ms=100.0))
    assert "12346 / 12346" in text and "10,000" in text
    tables = text.partition("submodels")[0]
    assert max(map(len, tables.splitlines())) <= 80 and "\u2026" not in tables


def test_the_servers_times_and_the_clients_stand_together():
    text = shown(samples(answered(0, 0.0, 8.0, queue_ms=1.0, compute_ms=0.5)))
    assert line(text, "server: queue")[-3:] == ["1.00"] * 3
    assert line(text, "outside")[-3:] == ["6.00"] * 3
    assert line(text, "client: intended")[-3:] == ["8.00"] * 3


def test_submodels_errors_and_refusals_are_told():
    text = shown(samples(*TWO_SLOS), {"Overloaded": "12 [wait]"})
    assert "M 50.0%, XL 50.0%" in text
    assert "Overloaded: 1 requests (25.0%), the first: 12 [wait]" in text
    assert "refusals   came after 2.5 ms (p50) and 2.5 ms (p99)" in text


def test_a_generator_that_was_too_slow_is_warned_of_and_one_that_was_not_is_not():
    slow = samples(answered(0, 0.0, 8.0, sent_ms=5.0))
    assert "the load generator was a bottleneck: one request in a hundred" in shown(slow, width=200)
    assert "bottleneck" not in shown(samples(answered(0, 0.0, 8.0)))


def test_a_load_without_answers_can_be_shown():
    text = shown(samples(REFUSED, LOST))
    assert "none answered" in text and "- / 0.000" in text and not re.search(r"\bnan\b", text)


def window(throughput: float, p99_ms: float) -> Window:
    return Window(0.0, 1000.0, 10, throughput, 1.0, 0.0, 1.0, p99_ms)


@pytest.mark.parametrize(
    ("count", "stable", "words"),
    [
        (4, True, "stable: throughput and p99 of"),
        (4, False, "did not stabilise"),
        (2, False, "3 are needed"),
    ],
)
def test_stability_is_said_with_the_windows_it_was_judged_by(count: int, stable: bool, words: str):
    text = stability([window(10.0 * n, n) for n in range(count)], stable, 0.1)
    assert words in text
    assert ("30.0/s and 3.0 ms" in text) == (count > 2)


def test_json_has_null_for_what_is_not_known_and_keys_as_text():
    found = json_values({10.0: [float("nan"), float("inf"), 1.5], "a": (1, None, "b"), 2.5: True})
    assert found == {"10": [None, None, 1.5], "a": [1, None, "b"], "2.5": True}


def test_the_numbers_are_valid_json_whatever_happened():
    values = as_json(summarise(samples(REFUSED, LOST)), [window(0.0, float("nan"))], stable=False)
    found = json.loads(json.dumps(values, allow_nan=False))
    assert found["summary"]["overall"]["quality_met"] is None
    assert found["summary"]["by_slo"]["50"]["requests"] == 2
    assert found["windows"][0]["p99_ms"] is None and found["stable"] is False
