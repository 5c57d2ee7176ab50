"""The standard `grpc.health.v1` answers, from a canary inference instead of a constant."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import grpc
from grpc_health.v1.health_pb2 import (
    HealthCheckRequest,
    HealthCheckResponse,
    HealthListRequest,
    HealthListResponse,
)

from elastic.serve.api.decoding import parse
from elastic.serve.api.grpc import Context, answer, answer_stream

logger = logging.getLogger(__name__)

EMBEDDING_SERVICE, GENERATION_SERVICE = "elastic.v1.EmbeddingService", "elastic.v1.GenerationService"


class Health:
    """Remembers the last canary for `max_age_s`, so that probes cost the model at most one inference each period."""

    def __init__(
        self,
        canary: Callable[[], Awaitable[bool]],
        *,
        service: str = EMBEDDING_SERVICE,
        is_stuck: Callable[[], bool] = lambda: False,
        max_age_s: float = 1.0,
        poll_s: float = 0.1,
    ) -> None:
        """Ask `canary`, and wait for it as long as the model is not stuck: behind a long batch it may take its time.

        What can be asked about is the server as a whole (an empty name), or its one `service`.
        """
        self._canary, self._is_stuck = canary, is_stuck
        self._names = ("", service)
        self._max_age_s, self._poll_s = max_age_s, poll_s
        self._checked_s = float("-inf")
        self._is_sound = False
        self._draining = asyncio.Event()
        self._lock = asyncio.Lock()

    def drain(self) -> None:
        """From now on nothing new is served, however sound the model is."""
        self._draining.set()

    async def is_sound(self) -> bool:
        """Whether the model answers its canary correctly and is not stuck."""
        async with self._lock:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._checked_s > self._max_age_s:
                self._is_sound = await self._probe()
                self._checked_s = asyncio.get_running_loop().time()
            return self._is_sound

    async def is_serving(self) -> bool:
        """Whether a new call would be answered."""
        return not self._draining.is_set() and await self.is_sound()

    async def check(self, service: str) -> HealthCheckResponse | None:
        """The answer to `Check`; None for a service that is not here."""
        if service not in self._names:
            return None
        return _response(await self.is_serving())

    async def check_all(self) -> HealthListResponse:
        """The answer to `List`."""
        response = _response(await self.is_serving())
        return HealthListResponse(statuses=dict.fromkeys(self._names, response))

    async def watch(self, service: str, interval_s: float = 5.0) -> AsyncIterator[HealthCheckResponse]:
        """The answers to `Watch`: the state now, then every change; ends with the server."""
        if service not in self._names:
            yield HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
            return
        last: bool | None = None
        is_last = False
        while not is_last:
            is_last = self._draining.is_set()
            now = await self.is_serving()
            if now is not last:
                last = now
                yield _response(now)
            if not is_last:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._draining.wait(), interval_s)

    async def _probe(self) -> bool:
        probe = asyncio.ensure_future(self._canary())
        while not probe.done():
            if self._is_stuck():
                logger.error("the model thread is stuck")
                probe.cancel()
                return False
            await asyncio.wait({probe}, timeout=self._poll_s)
        error = probe.exception()
        if error is not None:
            logger.error("the canary inference failed", exc_info=error)
        return error is None and probe.result()


class HealthCalls:
    """The methods of `grpc.health.v1.Health`, for a replica to have among its own."""

    _health: Health

    async def Check(self, request: bytes, grpc_context: Context) -> HealthCheckResponse:
        """`grpc.health.v1.Health/Check`."""

        async def check() -> HealthCheckResponse:
            service = parse(HealthCheckRequest, request).service
            response = await self._health.check(service)
            if response is None:
                grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
                grpc_context.set_details(f"no service {service!r} here")
            return response or HealthCheckResponse()

        return await answer(grpc_context, HealthCheckResponse, check())

    async def List(self, request: bytes, grpc_context: Context) -> HealthListResponse:
        """`grpc.health.v1.Health/List`."""

        async def check_all() -> HealthListResponse:
            parse(HealthListRequest, request)
            return await self._health.check_all()

        return await answer(grpc_context, HealthListResponse, check_all())

    async def Watch(self, request: bytes, grpc_context: Context) -> AsyncIterator[HealthCheckResponse]:
        """`grpc.health.v1.Health/Watch`."""

        async def watch() -> AsyncIterator[HealthCheckResponse]:
            async for response in self._health.watch(parse(HealthCheckRequest, request).service):
                yield response

        async for response in answer_stream(grpc_context, watch()):
            yield response


def _response(is_serving: bool) -> HealthCheckResponse:
    status = HealthCheckResponse.SERVING if is_serving else HealthCheckResponse.NOT_SERVING
    return HealthCheckResponse(status=status)
