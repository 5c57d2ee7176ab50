import io
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from elastic.serve.batching import Front
from elastic.serve.observer import Outcome
from elastic.serve.telemetry.metrics import Metrics
from elastic.serve.telemetry.screen import duration, render
from elastic.serve.telemetry.snapshot import Snapshot

from .outcomes import answered, batch, computed, refused

WIDTH = 100


def shown(outcomes: Sequence[Outcome], front: Front, replicas: Sequence[str] = ("0",)) -> str:
    """The screen of ten seconds in which every replica had these requests, each in a batch of its own."""
    values = {}
    for replica in replicas:
        registry = CollectorRegistry()
        metrics = Metrics(registry, replica)
        for outcome in outcomes:
            metrics.request_finished(outcome)
            if outcome.error is None:
                metrics.batch_ran(batch(front, num_works=2, compute_ms=12.0, predicted_ms=10.0))
        metrics.sample(7)
        values |= Snapshot.parse(generate_latest(registry).decode(), 0.0).values
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False)
    at_s = 2_000_000_000.0
    console.print(render(Snapshot(at_s - 10.0, {}), Snapshot(at_s, values), "server"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines(screen: str, word: str) -> list[list[str]]:
    """The words of every line that has one word among them."""
    return [words for line in screen.splitlines() if word in (words := line.split())]


def test_the_headline_tells_rate_attainment_quality_and_queue(front: Front) -> None:
    screen = shown([answered(computed(front)), answered(computed(front)), refused(), refused()], front)
    (numbers,) = [line for line in screen.splitlines() if "0.400" in line][:1]
    assert numbers.split()[1:-1] == ["0.4", "50.0", "%", "0.400", "50.0", "%", "7", "1"]


def test_every_outcome_that_happened_has_a_line_with_its_share(front: Front) -> None:
    screen = shown([answered(computed(front)), answered(computed(front), slack_ms=-2.0)], front)
    assert lines(screen, "late")[0][1:3] == ["late", "1"]
    assert "50.0 %" in screen and "expired" not in screen


def test_a_negative_slack_is_shown_as_such(front: Front) -> None:
    screen = shown([answered(computed(front), slack_ms=-30.0)], front)
    assert [word for word in lines(screen, "left")[0] if word.startswith("-")]


def test_submodels_have_their_quality_and_share(front: Front) -> None:
    screen = shown([answered(computed(front))], front)
    (line,) = lines(screen, "M")
    assert line[1:5] == ["image", "M", "0.400", "2"] and line[-3:-1] == ["100.0", "%"]


def test_replicas_are_told_apart_only_if_there_are_several(front: Front) -> None:
    assert "up" not in shown([refused()], front).split()
    several = shown([refused()], front, replicas=["0", "1"])
    assert [line[1:3] for line in lines(several, "0.1")] == [["0", "0.1"], ["1", "0.1"]]


def test_an_idle_server_has_a_screen_without_numbers(front: Front) -> None:
    assert "nothing was computed" in shown([], front)


@pytest.mark.parametrize("replicas", [["0"], ["0", "1", "2"]])
def test_a_screen_fits_its_width(front: Front, replicas: list[str]) -> None:
    screen = shown([answered(computed(front)), refused()], front, replicas)
    assert max(map(len, screen.splitlines())) == WIDTH


@pytest.mark.parametrize(
    ("seconds", "words"), [(5.4, "5 s"), (119.0, "119 s"), (600.0, "10 min"), (86_400.0, "24 h"), (864_000.0, "10 d")]
)
def test_a_duration_is_told_in_one_unit(seconds: float, words: str) -> None:
    assert duration(seconds) == words
