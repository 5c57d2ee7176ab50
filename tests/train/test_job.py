"""The training of an encoder as a job; `test_trainer` starts it on Ray."""

import pickle
from dataclasses import replace

import pytest

from elastic.checkpoint import TOKENIZER
from elastic.errors import CheckpointError, ConfigError
from elastic.train.job import EncoderJob
from elastic.train.record import Origin, read_origin


@pytest.fixture
def job(drawings_config) -> EncoderJob:
    return EncoderJob(drawings_config)


def test_a_new_run_has_a_record_and_the_tokenizer_of_its_captions(job, tmp_path):
    job.start(tmp_path / "run", Origin(recipe="tiny"))
    assert read_origin(tmp_path / "run").recipe == "tiny"
    assert (tmp_path / "run" / TOKENIZER).is_file()
    with pytest.raises(CheckpointError, match="already holds a run"):
        job.start(tmp_path / "run", Origin())


def test_only_the_config_that_a_run_was_started_with_goes_on(job, tmp_path):
    job.start(tmp_path / "run", Origin())
    job.resume(tmp_path / "run")
    with pytest.raises(ConfigError, match="started with"):
        EncoderJob(replace(job.config, seed=1)).resume(tmp_path / "run")


def test_it_travels_to_workers_and_needs_nothing_made_ready(job):
    assert pickle.loads(pickle.dumps(job)) == job.prepare() == job


def test_it_says_what_the_data_needs(job):
    data = job.config.data
    assert (job.data_cores, job.data_workers, job.held_bytes) == (1, data.num_workers, data.hold_decoded_bytes)
    assert job.granularities == ("S", "M", "L", "XL")
