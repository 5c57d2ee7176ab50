import json
import math

import pytest
import torch

from elastic.errors import CheckpointError
from elastic.train.metrics import FILE, MetricLog, MetricMeans, MetricTail, drop_records_after, read_metrics


def test_means_count_a_name_only_where_it_was_added():
    means = MetricMeans()
    means.add({"loss": torch.tensor(1.0), "a/S": torch.tensor(4.0)})
    means.add({"loss": torch.tensor(3.0)})
    names, values = means.take()
    assert names == ["a/S", "loss"]
    assert values.tolist() == [4.0, 2.0]


def test_means_start_over_once_taken():
    means = MetricMeans()
    means.add({"loss": torch.tensor(1.0)})
    means.take()
    means.add({"loss": torch.tensor(5.0)})
    assert means.take()[1].tolist() == [5.0]


def test_adding_does_not_change_the_value_that_was_added():
    means, first = MetricMeans(), torch.tensor(1.0)
    means.add({"loss": first})
    means.add({"loss": torch.tensor(2.0)})
    assert first.item() == 1.0


def test_records_are_read_back_and_stand_in_tensorboard(tmp_path):
    with MetricLog(tmp_path, first_step=0) as log:
        log.write(10, {"loss": 2.0, "supcon/nce/XL": 1.5})
        assert read_metrics(tmp_path) == [{"step": 10, "loss": 2.0, "supcon/nce/XL": 1.5}]
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_a_value_that_is_not_a_number_is_refused(tmp_path):
    with MetricLog(tmp_path, first_step=0) as log, pytest.raises(ValueError, match="JSON"):
        log.write(1, {"loss": math.nan})


def test_a_resumed_log_drops_the_steps_that_are_taken_again(tmp_path):
    with MetricLog(tmp_path, first_step=0) as log:
        for step in (10, 20, 30):
            log.write(step, {"loss": float(step)})
    with MetricLog(tmp_path, first_step=20) as log:
        log.write(30, {"loss": -1.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(10, 10.0), (20, 20.0), (30, -1.0)]


def test_a_line_cut_short_by_a_crash_is_left_out_and_removed(tmp_path):
    whole = json.dumps({"step": 10, "loss": 1.0}) + "\n"
    (tmp_path / FILE).write_text(whole + '{"step": 20, "lo')
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 1.0}]
    drop_records_after(tmp_path, step=10)
    assert (tmp_path / FILE).read_text() == whole


def test_reading_a_run_without_metrics_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="train the run first"):
        read_metrics(tmp_path)


def test_a_tail_sees_each_record_once_and_only_whole_ones(tmp_path):
    tail = MetricTail(tmp_path)
    assert tail.poll() == []
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 1}\n{"step"')
        file.flush()
        assert tail.poll() == [{"step": 1}]
        assert tail.poll() == []
        file.write(": 2}\n")
    assert tail.poll() == [{"step": 2}]


def test_a_tail_survives_records_being_dropped(tmp_path):
    (tmp_path / FILE).write_text('{"step": 1}\n{"step": 2}\n')
    tail = MetricTail(tmp_path)
    drop_records_after(tmp_path, step=1)
    assert tail.poll() == [{"step": 1}]


def test_a_tail_survives_records_being_dropped_and_more_written_before_it_looks(tmp_path):
    (tmp_path / FILE).write_text('{"step": 1}\n{"step": 2}\n')
    tail = MetricTail(tmp_path)
    drop_records_after(tmp_path, step=1)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 2, "loss": 0.5}\n{"step": 3, "loss": 0.4}\n')
    assert [record["step"] for record in tail.poll()] == [1, 2, 3]
