"""What a training loop iterates: the planned batches of one worker, in step order.

`Feed` is the contract. `LocalFeed` executes the plan in the caller's process; `elastic.data.pipeline.RayFeed`
executes the same plan in one Ray Data execution. Both give the same batches, bit for bit.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from elastic.batch import Batch, Captions
from elastic.data.catalog import Catalog, open_catalog
from elastic.data.config import DataConfig
from elastic.data.decode import decode_all
from elastic.data.execute import CaptionArrays, Executor, Held, ShardArrays
from elastic.data.plan import Planner, check_divisible
from elastic.data.source import Source
from elastic.data.tokenizer import Tokenizer
from elastic.data.weights import WeightBook, Weights, check_weights
from elastic.errors import ConfigError, DataError
from elastic.model.config import Preprocess
from elastic.model.preprocess import normalise

MIN_JUDGED_IMAGES = 1000
"""The share of broken images is judged over at least this many, so that one early one does not end a run."""
LOG_EVERY_BROKEN = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedConfig:
    """What all workers of a run must agree on to see parts of the same batches."""

    data: DataConfig
    seed: int
    """The run's seed; the plan, augmentation and captions follow from it."""
    preprocess: Preprocess
    """How pixels are normalised; its `image_size` is the data's."""
    tokenizer: Tokenizer | None = None
    """Reads the captions; without it, batches carry no text."""
    max_tokens: int = 32
    """Longer captions are cut."""
    weights: dict[int, Weights] = field(default_factory=dict)
    """Stream weights by the segment they start at, over the configured ones; from a checkpoint when resuming."""
    is_adaptive: bool = False
    """Whether `set_weights` will be called for every segment that `weights` does not have."""

    def __post_init__(self) -> None:
        if self.preprocess.image_size != self.data.image_size:
            rule = f"must equal data.image_size={self.data.image_size}"
            raise ConfigError("preprocess.image_size", self.preprocess.image_size, rule)
        for weights in self.weights.values():
            check_weights(weights, len(self.data.streams))


class Feed(ABC):
    """The batches of one worker. Open it on every worker with equal arguments but the rank."""

    @property
    @abstractmethod
    def catalog(self) -> Catalog:
        """Domains, classes and captions that batches are numbered by; the same on every worker."""

    @abstractmethod
    def batches(self, start_step: int, num_steps: int) -> Iterator[Batch]:
        """This worker's batches of `num_steps` steps from `start_step`, on the CPU, images normalised.

        A step number is a planned batch: with gradient accumulation, several per update. Starting anywhere gives
        what an uninterrupted run would have given there. Every worker must call it with the same arguments.

        Raises:
            DataError: a source became unreadable, or more than `max_bad_fraction` of the images are broken.
        """

    @abstractmethod
    def set_weights(self, segment: int, weights: Weights) -> None:
        """Stream weights from step `segment * segment_steps` on; one worker calls it, for all workers.

        An adaptive feed makes no batch of a segment before its weights are set. Set them some steps before the
        segment begins, and the batches are ready in time. Segments must be set in order, each once.

        Raises:
            ConfigError: the feed is not adaptive, the segment is not the next, or the weights are unusable.
        """

    @property
    @abstractmethod
    def weights(self) -> dict[int, Weights]:
        """Weights by segment so far; store them in a checkpoint and pass them to `FeedConfig` when resuming."""

    @property
    @abstractmethod
    def num_images(self) -> int:
        """Images read for this worker so far, replacements included."""

    @property
    @abstractmethod
    def num_broken_images(self) -> int:
        """Images of those that could not be decoded and were replaced by another of their class or stream."""

    @abstractmethod
    def close(self) -> None:
        """Stop reading ahead and free what is held. Safe to call twice."""


class BrokenImages:
    """Counts broken images of a worker, logs them now and then, and ends the run when there are too many."""

    def __init__(self, config: DataConfig) -> None:
        self._config = config
        self.num_read = self.num_broken = 0

    def add(self, arrays: ShardArrays) -> None:
        """Count one step's images.

        Raises:
            DataError: the share of broken images is above `max_bad_fraction`.
        """
        before = self.num_broken
        self.num_read += arrays.num_read
        self.num_broken += arrays.num_broken
        if self.num_broken and (before == 0 or before // LOG_EVERY_BROKEN < self.num_broken // LOG_EVERY_BROKEN):
            name = self._config.streams[arrays.stream].name
            _log.warning("replaced %d broken of %d images, last in stream %r", self.num_broken, self.num_read, name)
        source = self._config.streams[arrays.stream].source
        check_broken(self._config, source, self.num_broken, max(self.num_read, MIN_JUDGED_IMAGES))


def check_broken(config: DataConfig, source: str, num_broken: int, num_images: int) -> None:
    """Accept a share of broken images.

    Raises:
        DataError: it is above `max_bad_fraction`.
    """
    if num_broken > config.max_bad_fraction * num_images:
        problem = f"{num_broken} of {num_images} images are broken, above max_bad_fraction={config.max_bad_fraction:g}"
        advice = "`elastic data check` lists them; repair the data or raise max_bad_fraction"
        raise DataError(source, problem, advice)


def open_streams(data: DataConfig, world: int) -> tuple[Catalog, tuple[Source, ...]]:
    """The catalog and sources of a configuration, checked against the number of workers.

    Raises:
        DataError: as `open_catalog`.
        ConfigError: a stream's groups do not divide among the workers.
    """
    for stream in data.streams:
        check_divisible(stream.name, stream.sampling.num_groups, world)
    return open_catalog(data)


def is_held(data: DataConfig, num_rows: int) -> bool:
    """Whether a stream of so many rows is decoded once and held."""
    return num_rows * 4 * data.canvas_size**2 <= data.hold_decoded_bytes


def to_batch(arrays: ShardArrays, config: FeedConfig, catalog: Catalog) -> Batch:
    """A worker's arrays as what objectives read."""
    rows = catalog.streams[arrays.stream]
    places = np.repeat(arrays.places, len(arrays.images) // len(arrays.places))
    present = rows.present

    def numbers(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values[places])

    def captions(found: CaptionArrays | None) -> Captions | None:
        if found is None:
            return None
        tokens = torch.from_numpy(found.tokens)
        mask = torch.arange(tokens.shape[1]) < torch.from_numpy(found.num_tokens)[:, None]
        index = np.repeat(found.index, len(places) // len(arrays.places))
        return Captions(tokens=tokens, mask=mask, index=torch.from_numpy(index))

    local = arrays.local_images
    return Batch(
        images=torch.from_numpy(normalise(arrays.images, config.preprocess)),
        row_ids=numbers(rows.row_ids),
        domains=numbers(rows.domains),
        stream=arrays.stream,
        labels=numbers(rows.labels) if "labels" in present else None,
        caption_ids=numbers(rows.caption_ids) if "caption_ids" in present else None,
        captions=captions(arrays.captions),
        synthetic_captions=captions(arrays.synthetic_captions),
        local_images=None if local is None else torch.from_numpy(normalise(local, config.preprocess)),
    )


class LocalFeed(Feed):
    """Executes the plan in the caller's process, without Ray: for tests, debugging and notebooks."""

    def __init__(self, config: FeedConfig, rank: int = 0, world: int = 1) -> None:
        self._config, self._rank, self._world = config, rank, world
        self._catalog, sources = open_streams(config.data, world)
        self._planner = Planner(config.data, self._catalog, config.seed)
        held = [self._hold(stream, source) for stream, source in enumerate(sources)]
        self._executor = Executor(config.data, self._catalog, sources, config.tokenizer, config.max_tokens, held)
        self._book = WeightBook(config.data.weights, config.weights, is_adaptive=config.is_adaptive)
        self._broken = BrokenImages(config.data)

    def _hold(self, stream: int, source: Source) -> Held | None:
        data, rows = self._config.data, self._catalog.streams[stream]
        if not is_held(data, len(rows)):
            return None
        canvases, broken = decode_all(source.read_images(rows.row_ids), data.canvas_size, data.max_pixels)
        check_broken(data, source.name, int(broken.sum()), len(rows))
        return Held(canvases=[canvases], broken=broken)

    @property
    def catalog(self) -> Catalog:
        """See `Feed.catalog`."""
        return self._catalog

    def batches(self, start_step: int, num_steps: int) -> Iterator[Batch]:
        """See `Feed.batches`."""
        for step in range(start_step, start_step + num_steps):
            weights = self._book.get(self._planner.segment(step))
            if weights is None:
                # In one process nobody else could set them while we wait.
                raise ConfigError("weights", step, "set the weights of a segment before its first step")
            shard = self._planner.shard(self._planner.step(step, weights), self._rank, self._world)
            arrays = self._executor.execute(shard)
            self._broken.add(arrays)
            yield to_batch(arrays, self._config, self._catalog)

    def set_weights(self, segment: int, weights: Weights) -> None:
        """See `Feed.set_weights`."""
        self._book.set(segment, weights)

    @property
    def weights(self) -> dict[int, Weights]:
        """See `Feed.weights`."""
        return dict(self._book.by_segment)

    @property
    def num_images(self) -> int:
        """See `Feed.num_images`."""
        return self._broken.num_read

    @property
    def num_broken_images(self) -> int:
        """See `Feed.num_broken_images`."""
        return self._broken.num_broken

    def close(self) -> None:
        """See `Feed.close`; there is nothing to stop."""
