"""Tokenizing by Ray Data: parts go to as many processes as there are cores, and come back in order.

    range(groups) -> task: read, split, tokenize -> rows in order, one a group

A row of an execution is a group of parts and nothing but its number until a task has made it. Order matters, since the
same documents must give the same files; memory does not grow with the corpus, since finished groups wait in the object
store only as far as Ray Data's own back-pressure lets them.
"""

import logging
import pickle
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from elastic.data.pool import get
from elastic.errors import ElasticError
from elastic.lm.text.documents import Part
from elastic.lm.text.tokenise import Job, Tokenised, tokenise

MAX_GROUPS = 4096
"""Of one execution: Ray plans all its tasks before the first."""


def tokenise_all(groups: Sequence[tuple[Part, ...]], job: Job) -> Iterator[Tokenised]:
    """The documents of every group, in order, tokenized wherever the connected Ray cluster has a core.

    Raises:
        DataError: as `read_parts`.
    """
    for start in range(0, len(groups), MAX_GROUPS):
        yield from _execute(groups[start : start + MAX_GROUPS], job)


def _execute(groups: Sequence[tuple[Part, ...]], job: Job) -> Iterator[Tokenised]:
    # The caller shows progress; what Ray has to say of an execution stands in its own log.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    shared = ray.put((list(groups), job))
    dataset = ray.data.range(len(groups), override_num_blocks=len(groups)).map_batches(
        partial(_tokenise_block, shared),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=1,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_options.preserve_order = True
    whole_blocks: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "prefetch_batches": 0}
    block: Any
    for block in dataset.iter_batches(**whole_blocks):
        for payload in block["payload"]:
            found = pickle.loads(payload.as_buffer())
            if isinstance(found, ElasticError):
                raise found
            yield found


def _tokenise_block(shared: ray.ObjectRef, block: pa.Table) -> pa.Table:
    """The payloads of a block of group numbers."""
    groups, job = get(shared)
    payloads = [_tokenise(groups[number], job) for number in block["id"].to_pylist()]
    return pa.table({"payload": pa.array(payloads, pa.large_binary())})


def _tokenise(parts: Sequence[Part], job: Job) -> bytes:
    """A group's documents, or the error to raise where it is read: Ray would retry it, and wrap it."""
    try:
        return pickle.dumps(tokenise(parts, job))
    except ElasticError as error:
        return pickle.dumps(error)
