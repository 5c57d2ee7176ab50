"""What Ray's processes run for a feed: parts to decode, and an actor of the pool that makes batches.

Ray loads this module wherever it plans, counts or hands on blocks, and torch takes a process seconds to load. So
nothing here needs torch, and what the actors of the pool do (`elastic.data.stage`) travels closed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from elastic.data.decode import decode_all
from elastic.data.source import Source
from elastic.errors import ElasticError


class PoolActor:
    """Makes blocks with what `build`, a reference to a function, returns; only here is that opened."""

    def __init__(self, build: ray.ObjectRef) -> None:
        self._make: Callable[[pa.Table], pa.Table] = get(build)()

    def __call__(self, block: pa.Table) -> pa.Table:
        """A block of the execution made from its row numbers."""
        return self._make(block)


def decode_part(
    source: Source, row_ids: np.ndarray, canvas_size: int, max_pixels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Canvases of some rows, and which of them are broken."""
    return decode_all(source.read_images(row_ids), canvas_size, max_pixels)


def get(reference: Any) -> Any:
    """The value of a remote call, or our own error as it was raised there."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ElasticError):
            raise error.cause from None
        raise
