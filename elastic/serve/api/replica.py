"""What the services of all replicas share: the model that answers now, and whether calls are taken, and whose."""

import asyncio
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from elastic.errors import ServerUnavailable
from elastic.serve.access.gate import Caller, Gate
from elastic.serve.retirable import Retirable

DRAIN_POLL_S = 0.01
ADVICE = "call again; another replica may answer"

_Served = TypeVar("_Served", bound=Retirable)


class ReplicaService(ABC, Generic[_Served]):
    """The calls of one replica, each answered by the model that was served when it arrived."""

    def __init__(self, served: _Served, gate: Gate) -> None:
        self._served, self._gate = served, gate
        self._is_draining = False
        self._is_sound = True
        self.num_calls = 0
        """Calls that were accepted and have not ended."""

    @property
    def served(self) -> _Served:
        """What answers the next call."""
        return self._served

    @property
    def is_stuck(self) -> bool:
        """Whether the model thread has been busy with one piece of work for longer than can be."""
        return self._served.is_stuck

    def check(self, caller: Caller) -> None:
        """Whether a caller may call at all, before anything that it sent is read.

        Raises:
            Unauthenticated: it may not.
        """
        self._gate.check(caller)

    def swap(self, served: _Served) -> None:
        """Answer every further call with another model; calls under way end on the one they began with."""
        self._served, old = served, self._served
        old.retire()

    def set_sound(self, is_sound: bool) -> None:
        """Whether the model can be relied on; while it cannot, no call waits for it or is accepted."""
        self._is_sound = is_sound
        if not is_sound:
            self._served.abandon(_not_sound())

    async def drain(self, timeout_s: float) -> int:
        """Accept no further call and wait for those that were; returns how many have not ended in time."""
        self._is_draining = True
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + timeout_s
        while self.num_calls and clock() < deadline_s:
            await asyncio.sleep(DRAIN_POLL_S)
        return self.num_calls

    async def canary(self) -> bool:
        """Whether the model still answers a fixed input correctly, in its own thread."""
        return await self._served.canary()

    def close(self) -> None:
        """Stop computing."""
        self._served.close()

    @contextmanager
    def _call(self) -> Iterator[_Served]:
        """The model that answers one call from its beginning to its end."""
        served = self._served
        self.num_calls += 1
        try:
            with served.in_use():
                yield served
        finally:
            self.num_calls -= 1

    def _check_accepting(self) -> None:
        if self._is_draining:
            raise ServerUnavailable("replica", "is shutting down", ADVICE)
        if not self._is_sound:
            raise _not_sound()


def _not_sound() -> ServerUnavailable:
    return ServerUnavailable("replica", "its model does not answer as it should", ADVICE)
