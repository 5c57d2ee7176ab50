"""The plan executed by Ray: one Ray Data execution over step numbers feeds every training worker.

(being built; the signatures stand)
"""

from collections.abc import Callable
from typing import Any

from elastic.data.feed import Feed, FeedConfig


def open_feed(
    config: FeedConfig,
    rank: int = 0,
    world: int = 1,
    broadcast: Callable[[Any], Any] | None = None,
) -> Feed:
    """The batches of one training worker, made by Ray Data; call it inside a Ray process, on every worker.

    `broadcast(value)` hands rank 0's value (a short string) to every rank, such as
    `ray.train.collective.broadcast_from_rank_zero`; needed when there are several workers.
    """
    raise NotImplementedError
