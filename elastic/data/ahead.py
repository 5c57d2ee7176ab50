"""Items made in a thread while earlier ones are consumed: overlap without a process."""

import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_S = 0.1
"""How soon the thread notices that nobody wants its items any more."""


class ReadAhead(Generic[T]):
    """Up to `depth` items of an iterator, held ready by a thread. The iterator runs in that thread only."""

    def __init__(self, items: Iterator[T], depth: int) -> None:
        assert depth >= 1, depth
        self._items = items
        self._ready: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True, name="read-ahead")
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        """The items in order; an error of the iterator is raised where its item would have been."""
        while not self._stopped.is_set():
            found = self._ready.get()
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found[0]

    def close(self) -> None:
        """Stop after the item that is being made, and wait for that."""
        self._stopped.set()
        self._thread.join()

    def _fill(self) -> None:
        try:
            for item in self._items:
                if not self._put((item,)):
                    break
            else:
                self._put(None)
        except BaseException as error:  # handed to the consumer
            self._put(error)
        finally:
            # A generator holds what it iterates; it may only be closed by the thread that ran it.
            close = getattr(self._items, "close", None)
            if close is not None:
                close()

    def _put(self, found: tuple[T] | BaseException | None) -> bool:
        """Wait for room; `False` once stopped."""
        while not self._stopped.is_set():
            try:
                self._ready.put(found, timeout=_POLL_S)
            except queue.Full:
                continue
            return True
        return False
