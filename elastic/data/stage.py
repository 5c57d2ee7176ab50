"""Makes rows of the execution in the actors of the pool: plan, read, decode, augment, tokenize."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from elastic.data.catalog import Catalog
from elastic.data.config import DataConfig
from elastic.data.execute import Executor, Held, ShardArrays
from elastic.data.plan import Planner
from elastic.data.pool import get
from elastic.data.rows import Rows
from elastic.data.source import Source
from elastic.data.tokenizer import Tokenizer
from elastic.data.weights import Weights
from elastic.errors import ElasticError


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """A stream that is held decoded: references to its canvases, and which rows are broken."""

    canvases: list[Any]
    broken: np.ndarray

    def fetch(self) -> Held:
        """The canvases, as views of the object store: no process has a copy."""
        return Held(canvases=get(self.canvases), broken=self.broken)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the pool needs to execute the plan."""

    data: DataConfig
    seed: int
    catalog: Catalog
    sources: Sequence[Source]
    tokenizer: Tokenizer | None
    max_tokens: int
    parts: Sequence[Parts | None]


class Stage:
    """What an actor of the pool does. An error of ours travels as a row, to arrive as itself."""

    def __init__(self, job: Job, board: Any, rows: Rows) -> None:
        # One core each: torch's threads of several processes on the same cores would wait for each other.
        torch.set_num_threads(1)
        held = [None if parts is None else parts.fetch() for parts in job.parts]
        self._board, self._rows = board, rows
        self._planner = Planner(job.data, job.catalog, job.seed)
        self._executor = Executor(job.data, job.catalog, job.sources, job.tokenizer, job.max_tokens, held)
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
            weights = get(self._board.get_weights.remote(segment))
            if weights is None:
                return None
            self._weights = {segment: weights}
        try:
            planned = self._planner.step(step, self._weights[segment])
            return self._executor.execute(self._planner.shard(planned, rank, self._rows.world))
        except ElasticError as error:
            return error
