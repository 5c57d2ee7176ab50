"""When a call that found no server is tried again: growing pauses with jitter, inside the budget, and not too often.

Pauses double, so that a server that restarts is not asked in vain many times, and are drawn between half and the
whole, so that clients that lost it together do not come back together. A token bucket (as in gRPC's A6 and Finagle)
bounds what retries add: every call earns a part of one, so while nothing answers, a client sends at most that part
more, however many attempts each call might take. Pure: clock and sleeping are the caller's.
"""

import random
import threading
from collections.abc import Callable

NUM_ATTEMPTS = 7
"""Up to 1.3 s of pauses: until a lost server has been noticed by what stands in front of it."""


class Retries:
    """What one client may repeat; safe to share between threads."""

    def __init__(
        self,
        *,
        num_attempts: int = NUM_ATTEMPTS,
        first_pause_s: float = 0.02,
        longest_pause_s: float = 1.0,
        share: float = 0.1,
        num_saved: float = 10.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Allow `num_attempts` in all per call.

        Args:
            num_attempts: the first one included.
            first_pause_s: before the first repetition, at most.
            longest_pause_s: where doubling ends.
            share: how many repetitions one call earns.
            num_saved: repetitions that can be saved up, and that a new client starts with.
            draw: uniform numbers in [0, 1).
        """
        self._num_attempts, self._share, self._num_saved = num_attempts, share, num_saved
        self._first_pause_s, self._longest_pause_s, self._draw = first_pause_s, longest_pause_s, draw
        self._tokens = num_saved
        self._lock = threading.Lock()

    def call_began(self) -> None:
        """Earn the share of one call."""
        with self._lock:
            self._tokens = min(self._tokens + self._share, self._num_saved)

    def pause_s(self, attempt: int, left_s: float) -> float | None:
        """How long to wait before repeating attempt number `attempt` (from 1), or None for not at all.

        `left_s` is what the budget still holds; a repetition is paid for here.
        """
        longest_s = min(self._first_pause_s * 2 ** (attempt - 1), self._longest_pause_s)
        pause_s = longest_s * (0.5 + 0.5 * self._draw())
        if attempt >= self._num_attempts or pause_s >= left_s:
            return None
        with self._lock:
            if self._tokens < 1.0:
                return None
            self._tokens -= 1.0
        return pause_s
