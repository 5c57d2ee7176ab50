"""When a model thread counts as stuck: its work has run for far longer than any prediction can explain.

Python cannot interrupt a thread that hangs inside a native call, so nothing is done about it here; the replica's
health turns bad and Serve replaces the process.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """Knows since when the one thread that it watches has been busy with one piece of work."""

    def __init__(
        self, *, floor_s: float = 10.0, factor: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Allow each piece of work `factor` times its prediction, but `floor_s` at least.

        The floor is what a short piece may take on a machine that is busy with something else.
        """
        self._floor_s, self._factor, self._clock = floor_s, factor, clock
        self._limit_s: float | None = None

    @contextmanager
    def watch(self, predicted_s: float) -> Iterator[None]:
        """Work that is expected to take this long; entered and left by the thread that is watched."""
        self._limit_s = self._clock() + max(self._factor * predicted_s, self._floor_s)
        try:
            yield
        finally:
            self._limit_s = None

    @property
    def is_stuck(self) -> bool:
        """Whether the work that runs now has used up its allowance; read from any thread."""
        limit_s = self._limit_s
        return limit_s is not None and self._clock() > limit_s
