"""What a run trains, as those see it who start it: `trainer` on Ray, and the command line.

A job is a config with what is done before the first step, on the machine that starts the run, and on every worker.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from ray.train.collective import broadcast_from_rank_zero
from rich.console import RenderableType

from elastic.checkpoint import TOKENIZER
from elastic.data.feed import Feed
from elastic.data.pipeline import open_feed
from elastic.data.tokenizer import Tokenizer
from elastic.data.weights import Weights
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.train.config import TrainConfig
from elastic.train.dry_run import dry_run
from elastic.train.loop import run
from elastic.train.preparation import check_data, feed_config, make_tokenizer
from elastic.train.record import Origin, check_unchanged, write_record
from elastic.train.window import num_workers, rank


@runtime_checkable
class JobConfig(Protocol):
    """The fields of a config that decide how a run is started."""

    @property
    def name(self) -> str:
        """Name of the run."""
        ...

    @property
    def steps(self) -> int:
        """Updates of the weights."""
        ...

    @property
    def num_workers(self) -> int:
        """Training processes."""
        ...

    @property
    def num_threads(self) -> int:
        """Torch threads of each on a CPU; 0 shares out the cores that the data leaves."""
        ...

    @property
    def device(self) -> Literal["cpu", "gpu"]:
        """What each computes on."""
        ...


@runtime_checkable
class Job(Protocol):
    """A run that can be started, resumed and worked on; pickled to every worker."""

    @property
    def config(self) -> JobConfig:
        """Everything the run depends on."""
        ...

    @property
    def granularities(self) -> tuple[str, ...]:
        """Names in the records that stand for submodels, ascending in size."""
        ...

    @property
    def data_cores(self) -> int:
        """Cores of a machine that its workers leave to the data."""
        ...

    @property
    def data_workers(self) -> int:
        """Processes that prepare data while the run trains."""
        ...

    @property
    def held_bytes(self) -> int:
        """Data that is held in memory for the whole run."""
        ...

    def describe(self) -> RenderableType:
        """What would be trained at what cost, without starting it.

        Raises:
            ConfigError: the config cannot be trained on its data.
            DataError: the data cannot be used.
        """
        ...

    def start(self, run_dir: Path, origin: Origin) -> None:
        """Check a new run, then write what describes it.

        Raises:
            CheckpointError: the directory already holds a run.
            ConfigError: the config cannot be trained on its data.
            DataError: the data cannot be used.
        """
        ...

    def resume(self, run_dir: Path) -> None:
        """Check that a run may go on.

        Raises:
            CheckpointError: there is no run in the directory.
            ConfigError: it was started with another config.
            DataError: the data cannot be used.
        """
        ...

    def prepare(self) -> "Job":
        """The job as workers get it, with data that is made once for all; Ray is connected.

        Raises:
            ConfigError: the config cannot be trained on its data.
            DataError: the data cannot be used.
        """
        ...

    def work(self, run_dir: Path, device: torch.device) -> int:
        """Train on one worker, from the newest checkpoint on; returns the updates taken in all."""
        ...


@dataclass(frozen=True, slots=True)
class EncoderJob:
    """The training of a nested image-text encoder."""

    config: TrainConfig

    @property
    def granularities(self) -> tuple[str, ...]:
        """Names in the records that stand for submodels, ascending in size."""
        return tuple(self.config.model.space.granularities)

    @property
    def data_cores(self) -> int:
        """One core stays with the data pipeline, whose scheduler alone takes half of one.

        With both of 2 cores training can be 1.3 times as fast or half as fast: threads wait for each other when
        anything holds a core.
        """
        return 1

    @property
    def data_workers(self) -> int:
        """Processes that decode and augment."""
        return self.config.data.num_workers

    @property
    def held_bytes(self) -> int:
        """Images that are held decoded."""
        return self.config.data.hold_decoded_bytes

    def describe(self) -> RenderableType:
        """The tables of `dry_run`."""
        return dry_run(self.config)

    def start(self, run_dir: Path, origin: Origin) -> None:
        """Check a new run, then write its record and its tokenizer."""
        tokenizer = make_tokenizer(self.config, check_data(self.config))
        write_record(run_dir, self.config, origin, collect(device_fingerprint()))
        if tokenizer is not None:
            tokenizer.save(run_dir / TOKENIZER)

    def resume(self, run_dir: Path) -> None:
        """Check that a run may go on."""
        check_unchanged(run_dir, self.config)
        check_data(self.config)

    def prepare(self) -> "EncoderJob":
        """Itself: images are prepared while it trains."""
        return self

    def work(self, run_dir: Path, device: torch.device) -> int:
        """Train on one worker, which reads its part of the data from Ray Data."""
        tokenizer = None if self.config.model.text is None else Tokenizer.load(run_dir / TOKENIZER)

        def open_worker_feed(weights: dict[int, Weights]) -> Feed:
            return open_feed(
                feed_config(self.config, tokenizer, weights),
                rank=rank(),
                world=num_workers(),
                broadcast=broadcast_from_rank_zero,
            )

        return run(self.config, run_dir, device, open_worker_feed)
