"""Starts the workers of a run on Ray, follows them, and takes down what it started. What they train is a `Job`.

`fit` runs Ray Train's controller from a thread, because the main thread has two jobs of its own: showing the
progress that the workers write to the run directory, and turning Ctrl-C or SIGTERM into a stop request.
"""

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import ray
import torch
from ray.train import (
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
    get_context,
)
from ray.train.torch import TorchTrainer

from elastic.checkpoint import latest_step
from elastic.errors import CheckpointError, ConfigError, ElasticError
from elastic.train.alarm import Alarm
from elastic.train.ending import STOP_FILE
from elastic.train.job import Job
from elastic.train.metrics import MetricTail
from elastic.train.progress import Progress
from elastic.train.record import FILE as RECORD_FILE
from elastic.train.record import Origin

POLL_S = 0.25
"""How often the run directory is looked at for new records."""
MAX_FAILURES = 3
"""Restarts after a worker was lost on a cluster; on one machine a lost worker ends the run."""
_ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
"""Ray Train's settings without a cluster: no process that waits for a machine to be taken away, and the end of a run is
noticed sooner. What the environment says already stays."""
_OBJECT_STORE_SLACK_BYTES = 512 * 1024**2
"""Room for batches on their way, beside the data that is held decoded."""
_RAY_FILES = ".ray"
"""Ray Train's own bookkeeping inside the run directory; our checkpoints are not in it."""


def fit(
    job: Job,
    run_dir: Path,
    *,
    resume: bool = False,
    address: str | None = None,
    origin: Origin | None = None,
) -> int:
    """Train; returns the number of updates taken in all, which is `job.config.steps` unless the run was stopped.

    Without an `address` a Ray instance is started for this process alone, on loopback, and shut down at the end;
    if the process is connected to Ray already, that is used. Ctrl-C or SIGTERM saves a checkpoint and returns; a
    second one ends the run at once.

    Args:
        job: what to train.
        run_dir: written to; on a cluster, storage that all nodes share.
        resume: continue the run that is in `run_dir` instead of starting one; nothing is done if it is finished.
        address: Ray cluster to use (`auto`, `host:port`).
        origin: how the config came about, for the run's record.

    Raises:
        CheckpointError: `run_dir` holds a run already, or none to resume, or a damaged one.
        ConfigError: the config is not the one that the run was started with, or the loss diverged.
        DataError: the data cannot be used.
    """
    run_dir = run_dir.absolute()
    if resume:
        job.resume(run_dir)
        if latest_step(run_dir) == job.config.steps:  # workers would start only to find nothing left to do
            return job.config.steps
    else:
        job.start(run_dir, origin or Origin())
    progress = Progress(job.config.steps, job.granularities)
    with progress, _scratch(run_dir), _connected(job, address), _stop_on_signal(run_dir, progress):
        tail = MetricTail(run_dir)
        ready = _prepared(job, run_dir, is_new=not resume)
        training = _in_background(_trainer(ready, run_dir, on_cluster=address is not None).fit)
        _follow(training, tail, progress)
        return _result(training)


def _prepared(job: Job, run_dir: Path, *, is_new: bool) -> Job:
    """The job with its data; a new run that cannot have it leaves no record in the way of the next."""
    try:
        return job.prepare()
    except ElasticError:
        if is_new:
            (run_dir / RECORD_FILE).unlink()
        raise


def _in_background(function: Callable[[], Result]) -> Future[Result]:
    """The result of a function that runs in a thread, which an interrupted main thread does not wait for."""
    future: Future[Result] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # handed to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=call, daemon=True, name="ray-train").start()
    return future


def _trainer(job: Job, run_dir: Path, *, on_cluster: bool) -> TorchTrainer:
    return TorchTrainer(
        # Not with a `train_loop_config`: Ray Train's controller would open that, and load all of training to read it.
        partial(_work, job, run_dir),
        scaling_config=ScalingConfig(num_workers=job.config.num_workers, use_gpu=job.config.device == "gpu"),
        run_config=RunConfig(
            name=_RAY_FILES,
            storage_path=str(run_dir),
            failure_config=FailureConfig(max_failures=MAX_FAILURES if on_cluster else 0),
        ),
    )


def _work(job: Job, run_dir: Path) -> int:
    """What every Ray Train worker runs."""
    if not (run_dir / RECORD_FILE).exists():
        advice = "put it on storage that all nodes share"
        raise CheckpointError(str(run_dir), "the run directory cannot be seen from a training node", advice)
    if job.config.device == "gpu":
        device = torch.device("cuda", torch.cuda.current_device())  # Ray Train's choice for this worker
    else:
        device = torch.device("cpu")
        share = ((os.cpu_count() or 1) - job.data_cores) // get_context().get_local_world_size()
        torch.set_num_threads(job.config.num_threads or max(1, share))
    return job.work(run_dir, device)


def _follow(training: Future[Result], tail: MetricTail, progress: Progress) -> None:
    """Show records until the training ends, and warn of those that look like a collapse."""
    alarm = Alarm()
    while not training.done():
        wait([training], timeout=POLL_S)
        for record in tail.poll():
            progress.show(record)
            for warning in alarm.hear(record):
                progress.warn(warning)


def _result(training: Future[Result]) -> int:
    """The value that the worker of rank 0 returned, or the error that ended the run."""
    try:
        done = training.result().return_value
    except TrainingFailedError as error:
        cause = _elastic_cause(error)
        if cause is None:
            raise
        raise cause from None
    assert done is not None, "every worker returns its step"
    return done


def _elastic_cause(error: TrainingFailedError) -> ElasticError | None:
    """Our own error among those that the workers failed with; Ray wraps each with its remote traceback."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    candidates = [getattr(failure, "_base_exc", failure) for failure in failures]
    return next((candidate for candidate in candidates if isinstance(candidate, ElasticError)), None)


@contextmanager
def _scratch(run_dir: Path) -> Iterator[None]:
    """No trace of an earlier attempt that was killed, and none of this one: Ray's bookkeeping, a stop request."""
    shutil.rmtree(run_dir / _RAY_FILES, ignore_errors=True)
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    try:
        yield
    finally:
        shutil.rmtree(run_dir / _RAY_FILES, ignore_errors=True)
        (run_dir / STOP_FILE).unlink(missing_ok=True)


@contextmanager
def _connected(job: Job, address: str | None) -> Iterator[None]:
    """A Ray instance to train on; one that was started here is shut down here."""
    if address is None:
        os.environ.update(_ONE_MACHINE | os.environ)
    if ray.is_initialized():
        yield
        return
    try:
        if address is None:
            _start_local(job)
        else:
            _join(address)
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        rule = "no Ray cluster answers there; start one (`ray up`, `ray start --head`) or leave the address out"
        raise ConfigError("address", address, rule) from error


def _start_local(job: Job) -> None:
    """An instance on loopback. Its CPUs are logical: training and data processes share the cores that there are."""
    config = job.config
    num_cpus = max(os.cpu_count() or 1, config.num_workers + job.data_workers + 2)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=num_cpus,
        include_dashboard=False,
        object_store_memory=job.held_bytes + _OBJECT_STORE_SLACK_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    if config.device == "gpu" and num_gpus < config.num_workers:
        rule = f"needs {config.num_workers} GPUs, this machine has {num_gpus}"
        raise ConfigError("device", config.device, rule)


@contextmanager
def _stop_on_signal(run_dir: Path, progress: Progress) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask the workers to save and stop; the second time they interrupt."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield
        return

    def ask(number: int, frame: FrameType | None) -> None:
        stop = run_dir / STOP_FILE
        if stop.exists():
            raise KeyboardInterrupt
        stop.touch()
        progress.note("saving a checkpoint and stopping; once more to stop at once")

    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in handled}
    for number in handled:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
