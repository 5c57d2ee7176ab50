"""The run around the step, on one worker: resume, take steps, record, validate, save, stop when asked.

Every worker runs this with the same config; the default process group, if there is one, joins them. The worker of
rank 0 writes the run directory. Nothing here knows of Ray: a machine with torch and prepared text can call `run`.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elastic.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from elastic.lm.checkpoint import LmManifest, save_matlm
from elastic.lm.text.prepared import PreparedText
from elastic.lm.training.config import MatlmConfig
from elastic.lm.training.state import MatlmState
from elastic.lm.training.step import train_step
from elastic.lm.training.validation import measure
from elastic.train.ending import end_window
from elastic.train.metrics import MetricLog
from elastic.train.record import provenance
from elastic.train.submodels import SubmodelSampler
from elastic.train.window import Window, num_workers, rank


def run(config: MatlmConfig, text: PreparedText, run_dir: Path, device: torch.device) -> int:
    """Train from the newest checkpoint to the last step or a stop request; returns the updates taken in all.

    `run_dir` holds the run's record. Raises:
        CheckpointError: the newest checkpoint is damaged.
        ConfigError: the loss is no longer finite.
    """
    state = MatlmState(config, device)
    newest = latest_checkpoint(run_dir)
    if newest is not None:
        state.load_state_dict(load_checkpoint(newest))
    _take_steps(state, text, run_dir, device)
    return state.step


def _take_steps(state: MatlmState, text: PreparedText, run_dir: Path, device: torch.device) -> None:
    config = state.config
    sampler = SubmodelSampler(config.decoder.space, config.submodels, config.seed)
    batches = _batches(text, state.step, config.steps, device)
    window = Window(_num_tokens, "tokens")
    with MetricLog(run_dir, state.step) if rank() == 0 else nullcontext() as log:
        while state.step < config.steps:
            (tokens,) = window.fetch(batches, 1, device)
            window.add(train_step(state, tokens, sampler.at(state.step)))
            is_last = state.step == config.steps
            if state.step % config.log_every and not is_last:
                continue
            record, stopping = end_window(window, run_dir, config.optim, step=state.step, steps=config.steps)
            if log is not None:
                if is_last or (config.validate_every and state.step % config.validate_every == 0):
                    record |= _validate(state, text)
                log.write(state.step, record)
                if stopping or is_last or state.step % config.checkpoint_every == 0:
                    _save(state, text, run_dir)
            if stopping:
                return


def _batches(text: PreparedText, start: int, stop: int, device: torch.device) -> Iterator[Tensor]:
    """This worker's blocks of each step, on their way to the device."""
    for step in range(start, stop):
        blocks = text.batch(step, rank=rank(), world=num_workers())
        yield blocks.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else blocks


def _num_tokens(blocks: Tensor) -> int:
    """Tokens that are predicted."""
    return blocks[:, 1:].numel()


def _validate(state: MatlmState, text: PreparedText) -> dict[str, float]:
    """`val/nats/<granularity>` of the averaged weights."""
    config = state.config
    named = config.decoder.space.granularities
    size = min(config.text.batch_size, config.validation_blocks)
    batches = islice(text.validation(size), config.validation_blocks // size)
    scores = measure(state.average, batches, tuple(named.values()), precision=config.precision)
    return {f"val/nats/{name}": scores[submodel].nats for name, submodel in named.items()}


def _save(state: MatlmState, text: PreparedText, run_dir: Path) -> None:
    """The model as it is now and then a checkpoint to continue from: that of the last step says that all is done."""
    config = state.config
    decay = config.optim.ema_decay
    made: dict[str, Any] = {
        "step": state.step,
        "seed": config.seed,
        "weights": f"averaged, decay {decay}" if decay > 0 else "of the last step",
    }
    manifest = LmManifest(
        decoder=config.decoder, eos_token_ids=(text.end_of_text,), provenance=provenance(run_dir) | made
    )
    save_matlm(run_dir, state.average, manifest, text.tokenizer)
    save_checkpoint(run_dir, state.state_dict(), state.step, config.keep_last)
