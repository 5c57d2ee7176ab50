"""What the processes of one feed tell each other. Runs as an async Ray actor, and knows nothing of Ray."""

import asyncio
from typing import Any

from elastic.data.weights import WeightBook, Weights


class Board:
    """The weights by segment, and each worker's share of an execution; whoever is early waits."""

    def __init__(self, book: WeightBook) -> None:
        self._book = book
        self._shares: dict[int, list[Any]] = {}
        self._is_closed = False
        self._changed = asyncio.Condition()

    async def get_weights(self, segment: int) -> Weights | None:
        """The weights of a segment, once they are set; `None` if the feed closes before."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._is_closed or self._book.get(segment) is not None)
        return self._book.get(segment)

    async def set_weights(self, segment: int, weights: Weights) -> None:
        """See `Feed.set_weights`."""
        async with self._changed:
            self._book.set(segment, weights)
            self._changed.notify_all()

    async def get_all_weights(self) -> dict[int, Weights]:
        """See `Feed.weights`."""
        return dict(self._book.by_segment)

    async def set_shares(self, execution: int, shares: list[Any]) -> None:
        """One iterator per worker, for the `execution`-th execution; the one before is over and let go."""
        async with self._changed:
            self._shares = {execution: shares}
            self._changed.notify_all()

    async def get_share(self, execution: int, rank: int) -> Any:
        """A worker's iterator, once rank 0 has made it."""
        async with self._changed:
            await self._changed.wait_for(lambda: execution in self._shares)
        return self._shares[execution][rank]

    async def close(self) -> None:
        """Let go whoever waits for weights."""
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()
