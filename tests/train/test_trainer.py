"""Real runs on Ray: two workers, killed, stopped and resumed.

They are compared with two workers that never heard of Ray and to which nothing happened. Every start of training on
Ray takes tens of seconds on two cores, so there are as few as can be.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.serving.processes import tree
from elastic.checkpoint import latest_checkpoint, latest_step, load_checkpoint, load_model
from elastic.data.feed import LocalFeed
from elastic.errors import CheckpointError, ConfigError, DataError
from elastic.train.command import Train
from elastic.train.config import TrainConfig
from elastic.train.ending import STOP_FILE
from elastic.train.job import EncoderJob
from elastic.train.trainer import fit

from ..workers import WORLD_SIZE
from .runs import losses, start, train

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray Train copies Ray Data's settings, deprecated ones included.
    pytest.mark.filterwarnings(r"ignore:.*deprecated:DeprecationWarning:ray\."),
]

STEPS = 60
START = "import sys; from elastic.train.command import Train; Train.parse(sys.argv[1:], prog='elastic train').run()"


def arguments(drawings: Path) -> list[str]:
    flags = {
        "--data.streams.0.source": drawings,
        "--steps": STEPS,
        "--checkpoint-every": 10,
        "--log-every": 5,
        "--num-workers": WORLD_SIZE,
        "--num-threads": 1,
    }
    return ["debug", *(str(word) for pair in flags.items() for word in pair)]


def wait_for(condition, seconds: float = 240.0) -> None:
    for _ in range(round(seconds / 0.05)):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def train_part(rank: int, config: TrainConfig, run_dir: Path) -> int:
    """What each of two workers runs without Ray."""
    return train(config, run_dir, LocalFeed, rank, WORLD_SIZE)


@pytest.fixture(scope="module")
def config(drawings):
    return Train.parse(arguments(drawings), prog="elastic train").config


@pytest.fixture(scope="module")
def straight(config, two_workers, tmp_path_factory):
    """A run without Ray, that nothing happened to."""
    run_dir = tmp_path_factory.mktemp("runs") / "straight"
    start(config, run_dir)
    assert two_workers.run(train_part, config, run_dir) == [STEPS] * WORLD_SIZE
    return run_dir


@pytest.fixture(scope="module")
def killed(drawings, tmp_path_factory):
    """A run whose process was killed without warning, as a real command on a Ray of its own."""
    run_dir = tmp_path_factory.mktemp("runs") / "killed"
    command = [sys.executable, "-c", START, *arguments(drawings), "--run-dir", str(run_dir)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: latest_step(run_dir) > 0 or process.poll() is not None)
    workers = [below.pid for below in tree(process.pid) if below.role == "RayTrainWorker"]
    process.kill()
    process.wait()
    wait_for(lambda: not any(tree(worker) for worker in workers))
    assert len(workers) == WORLD_SIZE
    assert 0 < latest_step(run_dir) < STEPS
    return run_dir


@pytest.fixture(scope="module")
def stopped(config, killed, local_ray):
    """The killed run, resumed and then sent SIGTERM; gives the step it saved at."""
    begun_at = latest_step(killed)

    has_returned = threading.Event()

    def terminate() -> None:
        wait_for(lambda: latest_step(killed) > begun_at or has_returned.is_set())
        if not has_returned.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    def ignore(number: int, frame: object) -> None:
        """Of a signal that comes when training has just ended, which must not end these tests."""

    handler = signal.signal(signal.SIGTERM, ignore)
    thread = threading.Thread(target=terminate)
    thread.start()
    try:
        done = fit(EncoderJob(config), killed, resume=True)
    finally:
        has_returned.set()
        thread.join()
        found = signal.signal(signal.SIGTERM, handler)
    assert found is ignore
    return done


@pytest.fixture(scope="module")
def resumed(config, killed, stopped):
    """The killed and stopped run, brought to its end."""
    assert fit(EncoderJob(config), killed, resume=True) == STEPS
    return killed


def test_sigterm_saves_a_checkpoint_and_returns(config, killed, stopped):
    assert 0 < stopped < STEPS
    assert stopped % config.log_every == 0


def test_a_killed_and_stopped_run_ends_with_the_weights_of_one_that_was_neither(straight, resumed):
    expected, found = (load_checkpoint(latest_checkpoint(path))["state"] for path in (straight, resumed))
    assert found["step"] == expected["step"] == STEPS
    for part in ("learner", "average"):
        assert all(torch.equal(found[part][name], value) for name, value in expected[part].items())


def test_a_killed_and_stopped_run_has_the_losses_of_one_that_was_neither(straight, resumed):
    assert losses(resumed) == losses(straight)


def test_a_finished_run_is_not_begun_again(config, straight, monkeypatch):
    monkeypatch.setattr("elastic.train.trainer._connected", None)  # no Ray
    before = sorted((path, path.stat().st_mtime_ns) for path in straight.rglob("*"))
    assert fit(EncoderJob(config), straight, resume=True) == STEPS
    assert sorted((path, path.stat().st_mtime_ns) for path in straight.rglob("*")) == before


def test_a_finished_run_holds_the_model(resumed):
    encoder, manifest, tokenizer = load_model(resumed)
    assert manifest.provenance["step"] == STEPS
    assert encoder.space.embed_dims == (8, 16)
    assert tokenizer is not None


def test_two_workers_train_as_one_does(config, straight, tmp_path):
    alone = replace(config, num_workers=1)
    start(alone, tmp_path / "alone")
    (tmp_path / "alone" / STOP_FILE).touch()  # at the first record
    assert train(alone, tmp_path / "alone") == config.log_every
    one, two = losses(tmp_path / "alone")[0], losses(straight)[0]
    assert one.keys() == two.keys()
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)  # sums in another order, over the first steps
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-2)


def test_sharded_workers_end_what_whole_ones_began(config, straight, two_workers, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(straight, run_dir)
    shutil.rmtree(latest_checkpoint(run_dir))
    assert latest_step(run_dir) == STEPS - config.checkpoint_every
    assert two_workers.run(train_part, replace(config, parallel="fsdp"), run_dir) == [STEPS] * WORLD_SIZE
    for found, expected in zip(losses(run_dir), losses(straight), strict=True):
        assert found == pytest.approx(expected, rel=1e-3)
    delivered, wanted = (load_model(path)[0].state_dict() for path in (run_dir, straight))
    for name, value in wanted.items():
        torch.testing.assert_close(delivered[name], value, rtol=0, atol=1e-4, msg=lambda text, name=name: name + text)


def test_a_run_that_exists_is_not_started_over(config, straight):
    with pytest.raises(CheckpointError, match="--resume"):
        fit(EncoderJob(config), straight)


def test_another_config_is_not_resumed(config, straight):
    with pytest.raises(ConfigError, match="started with"):
        fit(EncoderJob(replace(config, seed=1)), straight, resume=True)


def test_nothing_of_ray_and_no_stop_request_is_left_behind(straight, resumed):
    assert {path.name for path in straight.iterdir()} == {path.name for path in resumed.iterdir()}
    assert not (straight / ".ray").exists() and not (resumed / "stop").exists()


def test_a_run_that_cannot_start_leaves_nothing_in_the_way(config, tmp_path):
    cramped = replace(config.model, text=replace(config.model.text, vocab_size=4))
    with pytest.raises(ConfigError, match="vocab_size"):
        fit(EncoderJob(replace(config, model=cramped)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_broken_images_end_a_run_with_an_error_of_the_data(config, local_ray, drawings, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in drawings.iterdir():
        content = b"not an image" if file.name.endswith("_0.png") else file.read_bytes()
        (folder / file.name).write_bytes(content)
    stream = replace(config.data.streams[0], source=str(folder))
    broken = replace(config, num_workers=1, data=replace(config.data, streams=(stream,)))
    with pytest.raises(DataError, match="broken"):
        fit(EncoderJob(broken), tmp_path / "run")
