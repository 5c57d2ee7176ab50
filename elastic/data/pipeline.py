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
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataIterator, ExecutionResources

from elastic.batch import Batch
from elastic.data.ahead import ReadAhead
from elastic.data.board import Board
from elastic.data.catalog import Catalog, StreamRows
from elastic.data.config import DataConfig
from elastic.data.execute import ShardArrays
from elastic.data.feed import BrokenImages, Feed, FeedConfig, check_broken, is_held, open_streams, to_batch
from elastic.data.pool import PoolActor, decode_part, get
from elastic.data.rows import Rows, shard_bytes
from elastic.data.source import Source
from elastic.data.stage import Job, Parts, Stage
from elastic.data.weights import WeightBook, Weights
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
    job: Job | None = None
    if rank == 0:
        board = _start_board(config, name)
        job = _prepare(config, catalog, sources)  # while the board's process starts
        # Until it runs, its name cannot be looked up.
        get(board.__ray_ready__.remote())
    if world > 1:
        assert broadcast is not None, "several workers need a broadcast"
        name = broadcast(name)
    # The board lives as long as the handle it was made with, which is rank 0's.
    return RayFeed(config, catalog, board or ray.get_actor(name), rank, world, job)


def _start_board(config: FeedConfig, name: str) -> Any:
    actor_class: Any = ray.remote(num_cpus=0)(Board)
    book = WeightBook(config.data.weights, config.weights, is_adaptive=config.is_adaptive)
    return actor_class.options(name=name).remote(book)


def _prepare(config: FeedConfig, catalog: Catalog, sources: Sequence[Source]) -> Job:
    """What the pool is given; decodes the streams that are held, all at once."""
    streams = list(zip(catalog.streams, sources, strict=True))
    decoding = [_start_decoding(config.data, rows, source) for rows, source in streams]
    return Job(
        data=config.data,
        seed=config.seed,
        catalog=catalog,
        sources=sources,
        tokenizer=config.tokenizer,
        max_tokens=config.max_tokens,
        parts=[
            _finish_decoding(decoded, config.data, rows, source)
            for decoded, (rows, source) in zip(decoding, streams, strict=True)
        ],
    )


class RayFeed(Feed):
    """One worker's end of the execution; see `open_feed`."""

    def __init__(
        self, config: FeedConfig, catalog: Catalog, board: Any, rank: int, world: int, job: Job | None
    ) -> None:
        self._config, self._catalog = config, catalog
        self._board: Any = board
        self._rank, self._world = rank, world
        # Only rank 0 starts executions. What it holds decoded lives as long as this.
        self._job = job
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
        get(self._board.set_weights.remote(segment, weights))

    @property
    def weights(self) -> dict[int, Weights]:
        """See `Feed.weights`."""
        return get(self._board.get_all_weights.remote())

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
        get(self._board.close.remote())
        self._stop_reading()
        self._board = self._job = None

    def _stop_reading(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _read_all(self, start_step: int, num_steps: int) -> Iterator[tuple[ShardArrays, Batch]]:
        for rows in Rows.parts(self._config.data, start_step, num_steps, self._world):
            self._num_executions += 1
            if self._job is not None:
                shares = _execution(self._job, self._board, rows)
                get(self._board.set_shares.remote(self._num_executions, shares))
            share: DataIterator = get(self._board.get_share.remote(self._num_executions, self._rank))
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


def _execution(job: Job, board: Any, rows: Rows) -> list[DataIterator]:
    """Every worker's share of one Ray Data execution."""
    dataset = ray.data.range(rows.num_blocks * rows.block_steps, override_num_blocks=rows.num_blocks).map_batches(
        PoolActor,
        fn_constructor_args=(ray.put(partial(Stage, job, board, rows)),),
        compute=ActorPoolStrategy(size=job.data.num_workers),
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
    lookahead = max(LOOKAHEAD_BYTES, 4 * rows.world * rows.block_steps * shard_bytes(job.data, rows.world))
    context.execution_options.resource_limits = ExecutionResources(object_store_memory=lookahead)
    return dataset.streaming_split(rows.world, equal=True)


def _start_decoding(data: DataConfig, rows: StreamRows, source: Source) -> list[tuple[Any, Any]] | None:
    """Begin to decode a stream into the object store, part by part, if it is small enough: canvases and flags."""
    if not is_held(data, len(rows)):
        return None
    shared = ray.put(source)
    decode: Any = ray.remote(num_cpus=1, num_returns=2)(decode_part)
    starts = range(0, len(rows), HOLD_PART_ROWS)
    parts = [rows.row_ids[start : start + HOLD_PART_ROWS] for start in starts]
    return [tuple(decode.remote(shared, part, data.canvas_size, data.max_pixels)) for part in parts]


def _finish_decoding(
    decoded: list[tuple[Any, Any]] | None, data: DataConfig, rows: StreamRows, source: Source
) -> Parts | None:
    """What is held of a stream, once it is known which rows are broken."""
    if decoded is None:
        return None
    broken = np.concatenate([get(flags) for _, flags in decoded])
    check_broken(data, source.name, int(broken.sum()), len(rows))
    return Parts(canvases=[canvases for canvases, _ in decoded], broken=broken)
