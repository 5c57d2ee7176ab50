"""The standard `grpc.health.v1` answers, from a canary inference instead of a constant."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from grpc_health.v1.health_pb2 import HealthCheckResponse

logger = logging.getLogger(__name__)

SERVICE_NAMES = frozenset({"", "elastic.v1.EmbeddingService"})
"""What can be asked about: the server as a whole, or its one service."""


class Health:
    """Remembers the last canary for `max_age_s`, so that probes cost the model at most one inference each period."""

    def __init__(
        self, canary: Callable[[], Awaitable[bool]], *, max_age_s: float = 1.0, timeout_s: float = 5.0
    ) -> None:
        self._canary, self._max_age_s, self._timeout_s = canary, max_age_s, timeout_s
        self._checked_s = float("-inf")
        self._is_serving = False
        self._lock = asyncio.Lock()

    async def is_serving(self) -> bool:
        """Whether the model answered its canary correctly and in time."""
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._checked_s > self._max_age_s:
                self._is_serving = await self._probe()
                self._checked_s = asyncio.get_running_loop().time()
            return self._is_serving

    async def check(self, service: str) -> HealthCheckResponse | None:
        """The answer to `Check`; None for a service that is not here."""
        if service not in SERVICE_NAMES:
            return None
        return _response(await self.is_serving())

    async def watch(self, service: str, interval_s: float = 5.0) -> AsyncIterator[HealthCheckResponse]:
        """The answers to `Watch`: the state now, then every change."""
        if service not in SERVICE_NAMES:
            yield HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
            return
        last: bool | None = None
        while True:
            now = await self.is_serving()
            if now is not last:
                last = now
                yield _response(now)
            await asyncio.sleep(interval_s)

    async def _probe(self) -> bool:
        probe = asyncio.ensure_future(self._canary())
        done, _ = await asyncio.wait({probe}, timeout=self._timeout_s)
        if not done:
            logger.error("the canary inference did not end within %.1f s", self._timeout_s)
            probe.cancel()
            return False
        error = probe.exception()
        if error is not None:
            logger.error("the canary inference failed", exc_info=error)
        return error is None and probe.result()


def _response(is_serving: bool) -> HealthCheckResponse:
    status = HealthCheckResponse.SERVING if is_serving else HealthCheckResponse.NOT_SERVING
    return HealthCheckResponse(status=status)
