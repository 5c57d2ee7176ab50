"""A model that answers calls until another takes its place, and that closes itself when the last of them has ended."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager


class Retirable(ABC):
    """One run with its threads: everything that must change together when another run takes its place."""

    def __init__(self, name: str) -> None:
        self.name = name
        """Of the run."""
        self.num_calls = 0
        """Calls that use it now."""
        self._is_retired = False

    @property
    @abstractmethod
    def version(self) -> str:
        """Identity of the weights."""

    @property
    @abstractmethod
    def is_stuck(self) -> bool:
        """Whether the model thread has been busy with one piece of work for longer than can be."""

    @abstractmethod
    async def canary(self) -> bool:
        """Whether the model still answers a fixed input as it did the first time, in its own thread."""

    @abstractmethod
    def abandon(self, error: BaseException) -> None:
        """Let nobody wait any longer: everything that waits or is computed fails with `error`."""

    @abstractmethod
    def close(self) -> None:
        """Stop computing."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep it open until the block ends, retired or not."""
        self.num_calls += 1
        try:
            yield
        finally:
            self.num_calls -= 1
            self._close_if_done()

    def retire(self) -> None:
        """No further call will use it: close it when those that do have ended."""
        self._is_retired = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._is_retired and not self.num_calls:
            self.close()
