"""A MatLM run as a job: its record, its text, and a real start on Ray."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pytest

from elastic.errors import CheckpointError, ConfigError
from elastic.lm.checkpoint import load_matlm
from elastic.lm.training.job import MatlmJob
from elastic.train.record import Origin, read_origin
from elastic.train.trainer import fit


def test_a_started_run_has_a_record_and_is_not_started_again(config, tmp_path):
    job = MatlmJob(config)
    job.start(tmp_path / "run", Origin(recipe="tiny"))
    assert read_origin(tmp_path / "run").recipe == "tiny"
    with pytest.raises(CheckpointError, match="already holds a run"):
        job.start(tmp_path / "run", Origin())
    job.resume(tmp_path / "run")
    with pytest.raises(ConfigError, match="started with"):
        MatlmJob(replace(config, seed=1)).resume(tmp_path / "run")


def test_text_that_was_prepared_is_used_as_it_is_and_travels_as_a_path(config, text):
    job = MatlmJob(config).prepare()
    assert job.text is not None and job.text.folder == text.folder
    assert len(pickle.dumps(job)) < 4000
    assert (pickle.loads(pickle.dumps(job)).text.batch(3) == text.batch(3)).all()


def test_a_tokenizer_that_is_too_large_for_the_decoder_is_refused(config):
    small = replace(config, decoder=replace(config.decoder, vocab_size=260), text=replace(config.text, tokenizer="x"))
    with pytest.raises(ConfigError, match="tokens of the tokenizer"):
        MatlmJob(small).prepare()


def test_training_needs_no_ray_no_tyro_and_no_beartype():
    script = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "tyro", "beartype"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import elastic.lm.training.job
import elastic.lm.evaluation
import experiments.matlm.run
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:.*deprecated:DeprecationWarning:ray\.")
def test_a_run_on_ray_with_two_workers_ends_like_one_without(config, text, local_ray, train, losses, tmp_path):
    config = replace(config, num_workers=2, num_threads=1)
    assert fit(MatlmJob(config), tmp_path / "ray") == config.steps
    train(replace(config, num_workers=1), text, tmp_path / "alone")
    on_ray, alone = losses(tmp_path / "ray")[-1], losses(tmp_path / "alone")[-1]
    assert on_ray.keys() == alone.keys()
    assert on_ray["val/nats/XL"] == pytest.approx(alone["val/nats/XL"], rel=1e-4)
    assert load_matlm(tmp_path / "ray")[1].provenance["step"] == config.steps
    assert fit(MatlmJob(config), tmp_path / "ray", resume=True) == config.steps
