import io

import pytest
from rich.console import Console

from elastic.train.progress import Progress, duration, split_terms, summary

RECORD = {
    "step": 40,
    "loss": 2.5,
    "images_per_s": 640.4,
    "data_wait_fraction": 0.0123,
    "learning_rate": 1e-3,
    "step_s": 0.5,
    "supcon/nce/XL": 3.25,
}


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9s"), (185.0, "3m05s"), (3720.0, "1h02m"), (0.0, "0s")])
def test_durations_leave_out_leading_units(seconds, text):
    assert duration(seconds) == text


def test_a_summary_says_how_far_how_fast_and_how_long_still():
    text = summary(RECORD, steps=100)
    assert text == "step 40/100  loss 2.5000  640 images/s  data wait 1.2%  lr 1.00e-03  ETA 30s"


def test_a_summary_counts_in_the_records_unit():
    record = {name: value for name, value in RECORD.items() if name != "images_per_s"} | {"tokens_per_s": 12345.6}
    assert "12346 tokens/s" in summary(record, steps=100)


def test_terms_are_split_by_granularity():
    assert split_terms({"a/x/S": 1.0, "a/x/XL": 2.0, "b/y/S": 3.0, "loss": 4.0}) == {
        "a/x": {"S": 1.0, "XL": 2.0},
        "b/y": {"S": 3.0},
    }


def test_outside_a_terminal_every_record_is_one_line():
    out = io.StringIO()
    with Progress(100, ("S", "XL"), Console(file=out, width=40)) as progress:
        progress.show(RECORD)
    assert out.getvalue().splitlines() == ["starting", summary(RECORD, 100)]


def test_on_a_terminal_the_last_value_of_every_granularity_is_shown():
    out = io.StringIO()
    with Progress(100, ("S", "XL"), Console(file=out, force_terminal=True, width=120)) as progress:
        progress.show(RECORD)
        progress.show({**RECORD, "step": 60, "supcon/nce/S": 4.75})
    _, found, panel = out.getvalue().rpartition("step 60/100")
    assert found and "supcon/nce" in panel and "4.7500" in panel and "3.2500" in panel


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_warning_stays_while_records_come(is_terminal):
    out = io.StringIO()
    with Progress(100, ("S", "XL"), Console(file=out, force_terminal=is_terminal, width=120)) as progress:
        progress.warn("all images look alike")
        progress.show({**RECORD, "step": 60})
    _, warning, after = out.getvalue().partition("warning: all images look alike")
    assert warning and "step 60/100" in after
