"""The plan executed by Ray: one Ray Data execution over step numbers feeds every training worker.

    range(rows) -> actor pool: plan, read, decode, augment, tokenize -> streaming_split -> one Batch a step

A row of the execution is one worker's part of one step, and nothing but its number until the pool has made it, so
a run starts at any step without replaying. A long run is a few executions in a row, because Ray plans all blocks of
one before its first (see `MAX_BLOCKS` in `rows`).

Order is exact by construction: all blocks hold equally many rows of one worker, `preserve_order` keeps blocks in
sequence, and `streaming_split` then deals them out in turn (Ray's `OutputSplitter` gives each block to the worker
with the fewest rows). Every worker still checks each number.

Stream weights live on a small `Board` actor. The pool asks it once a segment, so weights change without a new
execution, and an adaptive run waits there, and nowhere else, for weights that are not yet set.
"""

import pickle
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataIterator, ExecutionResources
from ray.exceptions import RayTaskError

from elastic.batch import Batch
from elastic.data.ahead import ReadAhead
from elastic.data.board import Board
from elastic.data.catalog import Catalog, StreamRows
from elastic.data.config import DataConfig
from elastic.data.decode import decode_all
from elastic.data.execute import Executor, Held, ShardArrays
from elastic.data.feed import (
    BrokenImages,
    Feed,
    FeedConfig,
    Weights,
    check_broken,
    is_held,
    open_streams,
    to_batch,
)
from elastic.data.plan import Planner
from elastic.data.rows import Rows, shard_bytes
from elastic.data.source import Source
from elastic.errors import ElasticError

LOOKAHEAD_BYTES = 256 * 1024**2
"""Finished batches that may wait in the object store, all workers together."""
HOLD_PART_ROWS = 512
"""Rows that one task decodes; the row group of the bundled set."""


def open_feed(
    config: FeedConfig,
    rank: int = 0,
    world: int = 1,
    broadcast: Callable[[str], str] | None = None,
) -> "RayFeed":
    """The batches of one training worker, made by Ray Data; call it on every worker, with Ray connected.

    Args:
        config: the same on every worker.
        rank: this worker's number.
        world: how many there are.
        broadcast: hands rank 0's value to every rank, such as `ray.train.collective.broadcast_from_rank_zero`;
            needed when there are several workers.

    Raises:
        DataError: the data cannot be used as configured.
        ConfigError: a stream's batch does not divide among the workers.
    """
    catalog, sources = open_streams(config.data, world)
    name = f"elastic-feed-{uuid.uuid4().hex}"
    board: Any = None
    if rank == 0:
        parts = [_hold(config.data, *pair) for pair in zip(catalog.streams, sources, strict=True)]
        job = _Job(config=config, catalog=catalog, sources=sources, parts=parts, world=world)
        actor_class: Any = ray.remote(num_cpus=0)(Board)
        board = actor_class.options(name=name).remote(config, job)
        # Until it runs, its name cannot be looked up.
        _get(board.__ray_ready__.remote())
    if world > 1:
        assert broadcast is not None, "several workers need a broadcast"
        name = broadcast(name)
    # The board lives as long as the handle it was made with, which is rank 0's.
    return RayFeed(config, catalog, board or ray.get_actor(name), rank, world)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """A stream that is held decoded: references to its canvases, and which rows are broken."""

    canvases: list[ray.ObjectRef]
    broken: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What the pool needs to execute the plan."""

    config: FeedConfig
    catalog: Catalog
    sources: Sequence[Source]
    parts: Sequence[_Parts | None]
    world: int


class Stage:
    """An actor of the pool: makes rows of the execution. An error of ours travels as a row, to arrive as itself."""

    def __init__(self, board: Any, rows: Rows) -> None:
        # One core each: torch's threads of several processes on the same cores would wait for each other.
        torch.set_num_threads(1)
        job: _Job = _get(board.get_job.remote())
        held = [None if parts is None else _fetch(parts) for parts in job.parts]
        self._board, self._rows = board, rows
        self._planner = Planner(job.config.data, job.catalog, job.config.seed)
        self._executor = Executor(
            job.config.data, job.catalog, job.sources, job.config.tokenizer, job.config.max_tokens, held
        )
        self._weights: dict[int, Weights] = {}

    def __call__(self, block: pa.Table) -> pa.Table:
        """Row numbers to pickled `ShardArrays`."""
        payloads = [pickle.dumps(self._make(row), protocol=5) for row in block["id"].to_pylist()]
        return pa.table({"id": block["id"], "payload": pa.array(payloads, pa.large_binary())})

    def _make(self, row: int) -> ShardArrays | ElasticError | None:
        step, rank = self._rows.locate(row)
        if step is None:
            return None
        segment = self._planner.segment(step)
        if segment not in self._weights:
            weights = _get(self._board.get_weights.remote(segment))
            if weights is None:
                return None
            self._weights = {segment: weights}
        try:
            planned = self._planner.step(step, self._weights[segment])
            return self._executor.execute(self._planner.shard(planned, rank, self._rows.world))
        except ElasticError as error:
            return error


class RayFeed(Feed):
    """One worker's end of the execution; see `open_feed`."""

    def __init__(self, config: FeedConfig, catalog: Catalog, board: Any, rank: int, world: int) -> None:
        self._config, self._catalog = config, catalog
        self._board: Any = board
        self._rank, self._world = rank, world
        self._broken = BrokenImages(config.data)
        self._num_executions = 0
        self._is_closed = False
        self._ahead: ReadAhead[tuple[ShardArrays, Batch]] | None = None

    @property
    def catalog(self) -> Catalog:
        """See `Feed.catalog`."""
        return self._catalog

    def batches(self, start_step: int, num_steps: int) -> Iterator[Batch]:
        """See `Feed.batches`; one execution at a time."""
        self._stop_reading()
        arrays_and_batches = self._read_all(start_step, num_steps)
        self._ahead = ReadAhead(arrays_and_batches, self._config.data.prefetch_steps)
        try:
            for arrays, batch in self._ahead:
                self._broken.add(arrays)
                yield batch
        finally:
            self._stop_reading()

    def set_weights(self, segment: int, weights: Weights) -> None:
        """See `Feed.set_weights`."""
        _get(self._board.set_weights.remote(segment, weights))

    @property
    def weights(self) -> dict[int, Weights]:
        """See `Feed.weights`."""
        return _get(self._board.get_all_weights.remote())

    @property
    def num_images(self) -> int:
        """See `Feed.num_images`."""
        return self._broken.num_read

    @property
    def num_broken_images(self) -> int:
        """See `Feed.num_broken_images`."""
        return self._broken.num_broken

    def close(self) -> None:
        """See `Feed.close`."""
        if self._is_closed:
            return
        self._is_closed = True
        # First, because the pool may be waiting for weights that nobody will set now.
        _get(self._board.close.remote())
        self._stop_reading()
        self._board = None

    def _stop_reading(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _read_all(self, start_step: int, num_steps: int) -> Iterator[tuple[ShardArrays, Batch]]:
        for rows in Rows.parts(self._config.data, start_step, num_steps, self._world):
            self._num_executions += 1
            if self._rank == 0:
                shares = _execution(self._config.data, self._board, rows)
                _get(self._board.set_shares.remote(self._num_executions, shares))
            share: DataIterator = _get(self._board.get_share.remote(self._num_executions, self._rank))
            yield from self._read(rows, share)

    def _read(self, rows: Rows, share: DataIterator) -> Iterator[tuple[ShardArrays, Batch]]:
        expected = rows.start_step
        # Ray holds a block back until it has those it is to prefetch, and the next may wait for weights that are set
        # only after this one was used. `ReadAhead` is what overlaps reading with training.
        whole_blocks: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "prefetch_batches": 0}
        block: Any
        for block in share.iter_batches(**whole_blocks):
            for row, payload in zip(block["id"].to_pylist(), block["payload"], strict=True):
                found = pickle.loads(payload.as_buffer())
                if found is None:  # padding, or the feed was closed while the pool waited for weights
                    continue
                if isinstance(found, ElasticError):
                    raise found
                assert rows.locate(row) == (expected, self._rank) == (found.step, self._rank), (row, expected)
                expected += 1
                yield found, to_batch(found, self._config, self._catalog)
        assert self._is_closed or expected == rows.stop_step, (expected, rows)


def _execution(data: DataConfig, board: Any, rows: Rows) -> list[DataIterator]:
    """Every worker's share of one Ray Data execution."""
    dataset = ray.data.range(rows.num_blocks * rows.block_steps, override_num_blocks=rows.num_blocks).map_batches(
        Stage,
        fn_constructor_args=(board, rows),
        compute=ActorPoolStrategy(size=data.num_workers),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=1,
    )
    context = dataset.context
    context.enable_progress_bars = False
    # Blocks must stay as they are made: a split one would shift everything behind it.
    context.target_max_block_size = None
    context.execution_options.preserve_order = True
    lookahead = max(LOOKAHEAD_BYTES, 4 * rows.world * rows.block_steps * shard_bytes(data, rows.world))
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=lookahead)
    return dataset.streaming_split(rows.world, equal=True)


def _hold(data: DataConfig, rows: StreamRows, source: Source) -> _Parts | None:
    """Decode a stream into the object store, part by part, if it is small enough."""
    if not is_held(data, len(rows)):
        return None
    shared = ray.put(source)
    decode_part: Any = ray.remote(num_cpus=1, num_returns=2)(_decode_part)
    starts = range(0, len(rows), HOLD_PART_ROWS)
    decoded: list[Any] = [
        decode_part.remote(shared, rows.row_ids[start : start + HOLD_PART_ROWS], data) for start in starts
    ]
    broken = np.concatenate([_get(flags) for _, flags in decoded])
    check_broken(data, source.name, int(broken.sum()), len(rows))
    return _Parts(canvases=[canvases for canvases, _ in decoded], broken=broken)


def _decode_part(source: Source, row_ids: np.ndarray, data: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    return decode_all(source.read_images(row_ids), data.canvas_size, data.max_pixels)


def _fetch(parts: _Parts) -> Held:
    """The canvases, as views of the object store: no process has a copy."""
    return Held(canvases=ray.get(parts.canvases), broken=parts.broken)


def _get(reference: Any) -> Any:
    """The value of a remote call, or our own error as it was raised there."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ElasticError):
            raise error.cause from None
        raise
