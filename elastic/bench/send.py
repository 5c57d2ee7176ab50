"""Sends a load over gRPC and records every request, from one thread and one event loop.

Latency counts from the intended time, so a generator that falls behind makes the server look worse, never better; how
far it fell behind is in the samples. Unlike `elastic.client`, nothing is tried twice: an attempt that failed is one.
"""

import asyncio
import gc
import itertools
import json
import selectors
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.bench.load import Load, Outcome, Sample, Samples
from elastic.channel import key_metadata, open_aio_channel
from elastic.client import Client
from elastic.errors import ServerUnavailable
from elastic.profile.tables import Modality

CONNECT_S = 10.0
"""How long a connection may take."""
WATCH_S = 0.2
"""How often `on_tick` is called, and at most this much later sending stops when it says so."""

_SERVICE = "/elastic.v1.EmbeddingService"
_OUTCOMES = {
    "Overloaded": Outcome.REFUSED,
    "RateLimited": Outcome.REFUSED,
    "SloInfeasible": Outcome.REFUSED,
    "RESOURCE_EXHAUSTED": Outcome.REFUSED,
    "DeadlineExceeded": Outcome.EXPIRED,
    "DEADLINE_EXCEEDED": Outcome.UNANSWERED,
}
"""By `Sample.error`; whatever is not here has failed. A status in capitals came without an error of ours."""

Tick = Callable[[Sequence[Sample], float], bool]
"""Is given the requests that have ended so far, in the order of their end, and the time; true stops the sending."""


def send(load: Load, on_tick: Tick = lambda ended, now_ms: False) -> Samples:
    """Send all of a load, wait for what is still to come, and return every request that was sent.

    Raises:
        ServerUnavailable: nothing answers at the address before the load begins.
    """
    with asyncio.Runner(loop_factory=_precise_loop) as runner:
        return runner.run(send_async(load, on_tick))


async def send_async(load: Load, on_tick: Tick = lambda ended, now_ms: False) -> Samples:
    """`send`, inside a running event loop."""
    async with _connected(load) as channels:
        return await _Sender(load, channels, on_tick).run()


def server_info(load: Load) -> pb.InfoReply:
    """What the server that a load is meant for says about itself.

    Raises:
        ServerUnavailable: nothing answers at the address.
        Unauthenticated: it does not know the key.
    """
    with Client(load.address, api_key=load.api_key, tls=load.tls) as client:
        return client.info()


class _Sender:
    """One load on its way."""

    def __init__(self, load: Load, channels: Sequence[grpc.aio.Channel], on_tick: Tick) -> None:
        self._load, self._on_tick = load, on_tick
        self._calls = [
            channel.unary_unary(f"{_SERVICE}/Embed", response_deserializer=pb.EmbedReply.FromString)
            for channel in channels
        ]
        # Joined, two serialised messages are their merger: the content is encoded once, and the objective once.
        self._contents = [_encoded(content) for content in load.contents]
        self._slo_ms = load.slo_ms.tolist()
        self._slos = {slo_ms: _slo_bytes(slo_ms, load.embed_dim) for slo_ms in set(self._slo_ms)}
        self._credentials = key_metadata(load.api_key)
        self._ended: list[Sample] = []
        self._messages: dict[str, str] = {}
        self._stopped = False
        self._begin_s = self._unix_ms = 0.0

    async def run(self) -> Samples:
        """Send, wait, and gather what became of everything; the object is used up then."""
        # What exists now outlives the load: the collector need not look at it again meanwhile.
        gc.freeze()
        cpu_s = time.process_time()
        self._begin_s, self._unix_ms = time.perf_counter(), time.time() * 1000
        try:
            async with asyncio.TaskGroup() as watching:
                ticker = watching.create_task(self._tick())
                async with asyncio.TaskGroup() as asking:
                    await (self._closed(asking) if self._load.at_ms is None else self._open(asking))
                    end_ms = min(self._load.span_ms, self._now_ms()) if self._stopped else self._load.span_ms
                    cpu_share = (time.process_time() - cpu_s) * 1000 / self._now_ms()
                ticker.cancel()
        finally:
            gc.unfreeze()
        self._on_tick(self._ended, self._now_ms())
        return Samples.of(self._ended, end_ms, self._messages, cpu_share)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            self._stopped = self._on_tick(self._ended, self._now_ms()) or self._stopped

    async def _open(self, asking: asyncio.TaskGroup) -> None:
        """Start every request at its time."""
        assert self._load.at_ms is not None
        for number, at_ms in enumerate(self._load.at_ms.tolist()):
            # Even when it is behind, others have their turn: whoever is late must not make reading late as well.
            await asyncio.sleep(0)
            while (ahead_ms := at_ms - self._now_ms()) > 0 and not self._stopped:
                await asyncio.sleep(min(ahead_ms / 1000, WATCH_S))
            if self._stopped:
                return
            asking.create_task(self._ask(number, at_ms))

    async def _closed(self, asking: asyncio.TaskGroup) -> None:
        """Let every worker ask until the time is over."""
        numbers = itertools.count()

        async def work() -> None:
            while (now_ms := self._now_ms()) < self._load.duration_ms and not self._stopped:
                await self._ask(next(numbers), now_ms)

        await asyncio.wait([asking.create_task(work()) for _ in range(self._load.concurrency)])

    async def _ask(self, number: int, intended_ms: float) -> None:
        """Send one request and record its end."""
        slo_ms = self._slo_ms[number % len(self._slo_ms)]
        deadline_ms = intended_ms + slo_ms
        metadata = self._credentials
        if self._load.absolute_deadlines:
            metadata = [*metadata, ("x-deadline-unix-ms", f"{self._unix_ms + deadline_ms:.3f}")]
        modality, content = self._contents[number % len(self._contents)]
        body = content + self._slos[slo_ms]
        sample = Sample(number, slo_ms, intended_ms, self._now_ms(), modality=modality)
        left_s = (deadline_ms + self._load.grace_ms - sample.sent_ms) / 1000
        try:
            reply = await self._calls[number % len(self._calls)](body, timeout=max(left_s, 0.0), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            sample.done_ms = self._now_ms()
            self._record_error(sample, error)
        else:
            sample.done_ms = self._now_ms()
            _record_reply(sample, reply)
        self._ended.append(sample)

    def _record_error(self, sample: Sample, error: grpc.aio.AioRpcError) -> None:
        sent = next((value for key, value in error.trailing_metadata() if key == "elastic-error"), None)
        if sent is not None:
            sample.error = json.loads(sent)["type"]
        elif sample.done_ms >= sample.intended_ms + sample.slo_ms + self._load.grace_ms:
            # Both ends watch the time, and the server's cancellation may win.
            sample.error = grpc.StatusCode.DEADLINE_EXCEEDED.name
        else:
            sample.error = error.code().name
        sample.outcome = _OUTCOMES.get(sample.error, Outcome.FAILED)
        self._messages.setdefault(sample.error, error.details() or "")

    def _now_ms(self) -> float:
        return (time.perf_counter() - self._begin_s) * 1000


def _record_reply(sample: Sample, reply: pb.EmbedReply) -> None:
    why = reply.embeddings[0].explanation
    sample.outcome = Outcome.ANSWERED
    sample.granularity, sample.quality, sample.batch_size = why.granularity, why.quality, why.batch_size
    sample.preprocess_ms, sample.queue_ms = why.preprocess_ms, why.queue_ms
    sample.compute_ms, sample.predicted_ms = why.compute_ms, why.predicted_ms
    sample.total_ms, sample.slack_ms, sample.slo_met = reply.total_ms, reply.slack_ms, reply.slo_met


def _encoded(content: bytes | str) -> tuple[Modality, bytes]:
    is_text = isinstance(content, str)
    item = pb.Input(text=content) if is_text else pb.Input(image=content)
    return "text" if is_text else "image", pb.EmbedRequest(inputs=[item]).SerializeToString()


def _slo_bytes(slo_ms: float, embed_dim: int | None) -> bytes:
    return pb.EmbedRequest(slo=pb.Slo(latency_ms=slo_ms, embed_dim=embed_dim)).SerializeToString()


@asynccontextmanager
async def _connected(load: Load) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Channels that have connected.

    Raises:
        ServerUnavailable: one has not.
    """
    async with AsyncExitStack() as stack:
        opened = [open_aio_channel(load.address, load.tls, own_connection=True) for _ in range(load.connections)]
        channels = [await stack.enter_async_context(channel) for channel in opened]
        try:
            async with asyncio.timeout(CONNECT_S):
                await asyncio.gather(*(channel.channel_ready() for channel in channels))
        except TimeoutError as error:
            problem = f"no server answers within {CONNECT_S:g} s"
            advice = "start one with `elastic serve`, or name a running one's host:port"
            raise ServerUnavailable(load.address, problem, advice) from error
        yield channels


def _precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are not rounded up to whole milliseconds, as those of epoll are."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())
