"""The run around the step, on one worker: resume, take steps, record, save, stop when asked.

Every worker runs this with the same config; the default process group, if there is one, joins them. The worker of
rank 0 writes the run directory. Nothing here knows of Ray: `trainer` starts the workers.
"""

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

import torch

from elastic.batch import Batch
from elastic.checkpoint import TOKENIZER, Manifest, latest_checkpoint, load_checkpoint, save_checkpoint, save_model
from elastic.data.feed import Feed
from elastic.data.tokenizer import Tokenizer
from elastic.data.weights import Weights
from elastic.train.balance import Balancer
from elastic.train.config import TrainConfig
from elastic.train.ending import end_window
from elastic.train.metrics import MetricLog
from elastic.train.preparation import balanced_streams, dimensions, open_validation, preprocess
from elastic.train.record import provenance
from elastic.train.state import TrainState
from elastic.train.step import train_step
from elastic.train.submodels import SubmodelSampler
from elastic.train.window import Window, num_images, num_workers, rank

OpenFeed: TypeAlias = Callable[[dict[int, Weights]], Feed]
"""Opens this worker's feed with the stream weights that were set before the run was interrupted."""


def run(config: TrainConfig, run_dir: Path, device: torch.device, open_feed: OpenFeed) -> int:
    """Train from the newest checkpoint to the last step or a stop request; returns the updates taken in all.

    Raises:
        CheckpointError: the newest checkpoint is damaged.
        ConfigError: the loss is no longer finite.
        DataError: the feed cannot go on.
    """
    newest = latest_checkpoint(run_dir)
    saved = None if newest is None else load_checkpoint(newest)
    with closing(open_feed({} if saved is None else saved["stream_weights"])) as feed:
        state = TrainState(config, dimensions(config, feed.catalog), device)
        balancer = _balancer(config, feed, device)
        if saved is not None:
            state.load_state_dict(saved["state"])
            if balancer is not None:
                balancer.load_state_dict(saved["balancer"])
        _take_steps(state, balancer, feed, run_dir, device)
    return state.step


def _balancer(config: TrainConfig, feed: Feed, device: torch.device) -> Balancer | None:
    """What sets the weights of the streams, if they follow the loss."""
    if config.balancing is None:
        return None
    return Balancer(config.balancing, config.data, balanced_streams(config, feed.catalog), feed, device)


def _take_steps(state: TrainState, balancer: Balancer | None, feed: Feed, run_dir: Path, device: torch.device) -> None:
    config = state.config
    sampler = SubmodelSampler(state.space, config.submodels, config.seed)
    done = state.step * config.accumulate
    batches = _started(feed.batches(done, config.num_batches - done))
    window = Window(num_images)
    validation = open_validation(config) if rank() == 0 else None
    with MetricLog(run_dir, state.step) if rank() == 0 else nullcontext() as log:
        while state.step < config.steps:
            group = window.fetch(batches, config.accumulate, device)
            report = train_step(state, group, sampler.at(state.step), rank=rank())
            window.add(report)
            if balancer is not None:
                balancer.add(group[0].stream, report)
                balancer.update(state.step)
            is_last = state.step == config.steps
            if state.step % config.log_every and not is_last:
                continue
            record, stopping = _close(window, state, feed, run_dir)
            if balancer is not None:
                record |= balancer.close()
            if config.validate_every and (is_last or state.step % config.validate_every == 0):
                average = state.whole_average()  # of all workers' parts
                record |= {} if validation is None else validation.measure(average)
            if log is not None:
                log.write(state.step, record)
            if stopping or is_last or state.step % config.checkpoint_every == 0:
                _save(state, balancer, run_dir, feed)
            if stopping:
                return


def _started(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches once the first is there, so that the pipeline's start does not count as a wait of a step."""
    return chain(list(islice(batches, 1)), batches)


def _close(window: Window[Batch], state: TrainState, feed: Feed, run_dir: Path) -> tuple[dict[str, float], bool]:
    """The window's record, and whether the run is to stop, on all workers alike."""
    config, broken = state.config, float(feed.num_broken_images)
    record, stopping = end_window(
        window, run_dir, config.optim, step=state.step, steps=config.steps, broken_images=broken
    )
    record["broken_images"] *= num_workers()
    return record, stopping


def _save(state: TrainState, balancer: Balancer | None, run_dir: Path, feed: Feed) -> None:
    """The model as it is now and a checkpoint to continue from; collected from all workers, written by one.

    In this order, so that a run whose checkpoint is that of the last step has its model.
    """
    saved = {"state": state.state_dict(), "stream_weights": feed.weights}
    if balancer is not None:
        saved["balancer"] = balancer.state_dict()
    average = state.whole_average()
    if rank() != 0:
        return
    manifest = Manifest(
        encoder=state.config.model,
        preprocess=preprocess(state.config),
        domains=feed.catalog.domains,
        provenance={**provenance(run_dir), "step": state.step, "seed": state.config.seed},
    )
    tokenizer = None if state.config.model.text is None else Tokenizer.load(run_dir / TOKENIZER)
    save_model(run_dir, average, manifest, tokenizer)
    save_checkpoint(run_dir, saved, state.step, state.config.keep_last)
