"""The plan is data: what every step shows to every worker, as a pure function of (seed, step, weights).

Nothing here reads an image or keeps a position. So any process can compute any step, a run resumes anywhere without
replaying, and what a worker saw can be recomputed years later from the run's seed.

Which stream a step takes is decided a segment at a time: each stream gets its exact share of the segment's steps, in
an order drawn from (seed, segment). Source: UDON's code (arXiv 2406.08332), whose one schedule covers the whole run and
is drawn again whenever the weights change; here a segment is the unit of both.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Int

from elastic.data.catalog import Catalog, StreamRows, open_catalog
from elastic.data.config import ClassBalanced, DataConfig, Shuffled
from elastic.data.weights import check_weights
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
        self._schedule: tuple[int, tuple[float, ...], np.ndarray] | None = None

    def segment(self, step: int) -> int:
        """The segment of a step; weights are constant within one."""
        return step // self._config.segment_steps

    def step(self, step: int, weights: tuple[float, ...]) -> PlannedStep:
        """The batch of a step under these stream weights.

        Raises:
            ConfigError: not one weight per stream, none positive, or unequal ones where streams take turns.
        """
        stream = self._stream(step, weights)
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

    def _stream(self, step: int, weights: tuple[float, ...]) -> int:
        share = check_weights(weights, len(self._catalog.streams))
        if self._config.order == "round_robin":
            taking_turns = np.flatnonzero(share)
            if len(set(share[taking_turns])) > 1:
                raise ConfigError("weights", weights, "must be equal, or 0, where streams take turns")
            return int(taking_turns[step % len(taking_turns)])
        segment, offset = divmod(step, self._config.segment_steps)
        return int(self._scheduled(segment, weights)[offset])

    def _scheduled(self, segment: int, weights: tuple[float, ...]) -> np.ndarray:
        """The stream of each step of a segment. The newest is kept: neighbouring steps ask for the same."""
        if self._schedule is None or self._schedule[:2] != (segment, weights):
            counts = shares(weights, self._config.segment_steps)
            drawn = self._random(_PURPOSE_STREAM, segment).permutation(np.repeat(np.arange(len(counts)), counts))
            self._schedule = segment, weights, drawn
        return self._schedule[2]

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


def shares(weights: tuple[float, ...], count: int) -> tuple[int, ...]:
    """How many of `count` steps each stream gets: its share, rounded down; the last positive one gets the rest."""
    share = check_weights(weights, len(weights))
    # What is whole in decimals may be a rounding error below it in binary.
    counts = np.floor(share * count + 1e-9).astype(int)
    counts[np.flatnonzero(share)[-1]] += count - counts.sum()
    return tuple(counts.tolist())


def weigh_by_size(config: DataConfig) -> DataConfig:
    """The same streams, each as frequent as it has rows, so that batches of one size show all rows equally often.

    Raises:
        DataError: as `open_catalog`.
    """
    catalog, _ = open_catalog(config)
    sized = zip(config.streams, catalog.streams, strict=True)
    return replace(config, streams=tuple(replace(stream, weight=float(len(rows))) for stream, rows in sized))


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
