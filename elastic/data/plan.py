"""The plan is data: what every step shows to every worker, as a pure function of (seed, step, weights).

Nothing here reads an image or keeps a position. So any process can compute any step, a run resumes anywhere without
replaying, and what a worker saw can be recomputed years later from the run's seed.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from elastic.data.catalog import Catalog, StreamRows
from elastic.data.config import ClassBalanced, DataConfig, Shuffled
from elastic.errors import ConfigError

# What separates the random choices of one seed from each other.
_PURPOSE_STREAM, _PURPOSE_ROWS, _PURPOSE_EPOCH, _PURPOSE_AUGMENT = range(4)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedStep:
    """One step's batch over all workers."""

    step: int
    stream: int
    """Which stream it is taken from."""
    places: Int[np.ndarray, " images"]
    """Rows of the stream, by place; the rows of a group are adjacent."""
    seed: int
    """What augmentation and the choice of captions draw from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """The part of a planned step that one worker gets: images `start` to `stop` of the batch."""

    planned: PlannedStep
    start: int
    stop: int

    @property
    def places(self) -> Int[np.ndarray, " images"]:
        """Rows of the stream, by place."""
        return self.planned.places[self.start : self.stop]


class Planner:
    """Plans any step. Holds no position: two calls with equal arguments give equal steps."""

    def __init__(self, config: DataConfig, catalog: Catalog, seed: int) -> None:
        self._config, self._catalog, self._seed = config, catalog, seed
        self._epochs: dict[tuple[int, int], np.ndarray] = {}

    def segment(self, step: int) -> int:
        """The segment of a step; weights are constant within one."""
        return step // self._config.segment_steps

    def step(self, step: int, weights: tuple[float, ...]) -> PlannedStep:
        """The batch of a step under these stream weights.

        Raises:
            ConfigError: not one weight per stream, or none positive.
        """
        share = check_weights(weights, len(self._catalog.streams))
        stream = int(self._random(_PURPOSE_STREAM, step).choice(len(share), p=share))
        sampling, rows = self._config.streams[stream].sampling, self._catalog.streams[stream]
        if isinstance(sampling, ClassBalanced):
            places = _class_balanced(rows, sampling, self._random(_PURPOSE_ROWS, step))
        else:
            places = self._shuffled(rows, sampling, stream, step)
        seed = int(self._random(_PURPOSE_AUGMENT, step).integers(2**63))
        return PlannedStep(step=step, stream=stream, places=places, seed=seed)

    def shard(self, planned: PlannedStep, rank: int, world: int) -> Shard:
        """A worker's part: contiguous, groups whole, all parts equally large.

        Raises:
            ConfigError: the stream's groups do not divide among the workers.
        """
        stream = self._config.streams[planned.stream]
        check_divisible(stream.name, stream.sampling.num_groups, world)
        size = len(planned.places) // world
        return Shard(planned=planned, start=rank * size, stop=(rank + 1) * size)

    def _random(self, purpose: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, purpose, *numbers))

    def _shuffled(self, rows: StreamRows, sampling: Shuffled, stream: int, step: int) -> np.ndarray:
        # The position in the stream's endless sequence of epochs is the step's, also where other streams take
        # some of the steps: a position that counted its own steps would depend on the history of weights.
        positions = step * sampling.batch_size + np.arange(sampling.batch_size)
        epochs, offsets = np.divmod(positions, len(rows))
        places = np.empty(sampling.batch_size, np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            places[chosen] = self._epoch(stream, int(epoch), len(rows))[offsets[chosen]]
        return places

    def _epoch(self, stream: int, epoch: int, num_rows: int) -> np.ndarray:
        key = (stream, epoch)
        if key not in self._epochs:
            # Only the newest epoch of each stream is worth keeping: a batch reaches into at most one new one.
            self._epochs = {kept: order for kept, order in self._epochs.items() if kept[0] != stream}
            self._epochs[key] = self._random(_PURPOSE_EPOCH, stream, epoch).permutation(num_rows)
        return self._epochs[key]


def check_weights(weights: tuple[float, ...], num_streams: int) -> np.ndarray:
    """Probabilities of the streams.

    Raises:
        ConfigError: not one weight per stream, a negative one, or none positive.
    """
    values = np.asarray(weights, np.float64)
    if values.shape != (num_streams,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() == 0:
        raise ConfigError("weights", weights, f"needs {num_streams} finite weights, none negative, one above zero")
    return values / values.sum()


def check_divisible(stream: str, num_groups: int, world: int) -> None:
    """Accept a number of workers that shares out a stream's groups evenly.

    Raises:
        ConfigError: it does not.
    """
    if num_groups % world:
        raise ConfigError(f"stream {stream!r}", num_groups, f"groups per batch must be a multiple of {world} workers")


def _class_balanced(rows: StreamRows, sampling: ClassBalanced, random: np.random.Generator) -> np.ndarray:
    chosen = random.choice(len(rows.groups), sampling.classes_per_batch, replace=False)
    return np.concatenate([_images_of(rows.groups.places(int(index)), sampling, random) for index in chosen])


def _images_of(places: np.ndarray, sampling: ClassBalanced, random: np.random.Generator) -> np.ndarray:
    """Images of one class: distinct while there are enough, else each as often as the others, give or take one."""
    count = sampling.images_per_class
    rounds = [random.permutation(places) for _ in range(-(-count // len(places)))]
    return np.concatenate(rounds)[:count]
