"""The client for asyncio: the same calls, arguments and errors as `elastic.client.Client`.

    async with AsyncClient("127.0.0.1:9000") as client:
        answers = await asyncio.gather(*(client.embed(images=[path], latency_slo_ms=10) for path in paths))

Needs grpc and numpy, neither torch nor ray.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar, Unpack

import grpc

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1 import generation_pb2 as generation_pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceStub
from elastic._pb.elastic.v1.generation_pb2_grpc import GenerationServiceStub
from elastic.channel import Tls, key_metadata, open_aio_channel
from elastic.errors import ElasticError
from elastic.generated import Generated, GenerateOptions, generate_deadline, generate_request, generated
from elastic.messages import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    STREAM_TIMEOUT_S,
    Ask,
    Deadline,
    Embedding,
    embeddings,
    error_of,
    image_message,
    is_unavailable,
    stream_answer,
    stream_input,
)
from elastic.quantise import Dtype, Output
from elastic.retry import NUM_ATTEMPTS, Retries

_T = TypeVar("_T")


class AsyncClient:
    """A connection to one server for the tasks of one event loop; make it inside the loop."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        num_attempts: int = NUM_ATTEMPTS,
        synchronised_clocks: bool = True,
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Prepare a connection to `host:port`; the arguments and errors are those of `Client`."""
        self.address = address
        self._timeout_s = timeout_s
        self._retries = Retries(num_attempts=num_attempts)
        self._synchronised_clocks = synchronised_clocks
        self._metadata = key_metadata(api_key)
        self._tls = tls
        self._channel = open_aio_channel(address, tls)
        self._stub = EmbeddingServiceStub(self._channel)
        self._generation = GenerationServiceStub(self._channel)

    async def embed(
        self,
        *,
        images: Sequence[bytes | Path | str] = (),
        texts: Sequence[str] = (),
        latency_slo_ms: float | None = None,
        embed_dim: int | tuple[int, int] | None = None,
        min_quality: float | None = None,
        priority: int = 0,
        dtype: Dtype = "float32",
        outputs: Sequence[Output] = (),
    ) -> list[Embedding]:
        """Embeddings of all images, then of all texts; arguments and errors are those of `Client.embed`."""
        ask = Ask(
            latency_slo_ms=latency_slo_ms,
            embed_dim=embed_dim,
            min_quality=min_quality,
            priority=priority,
            dtype=dtype,
            outputs=outputs,
        )
        deadline = Deadline(budget_ms=latency_slo_ms, timeout_s=self._timeout_s)
        pictures = await _image_messages(images)
        request = ask.request([*pictures, *(pb.Input(text=text) for text in texts)])
        return embeddings(await self._call(self._stub.Embed, request, deadline))

    async def embed_stream(
        self,
        inputs: Iterable[bytes | Path | str] | AsyncIterable[bytes | Path | str],
        *,
        latency_slo_ms: float | None = None,
        embed_dim: int | tuple[int, int] | None = None,
        min_quality: float | None = None,
        priority: int = 0,
        dtype: Dtype = "float32",
        outputs: Sequence[Output] = (),
        timeout_s: float = STREAM_TIMEOUT_S,
    ) -> AsyncGenerator[tuple[int, Embedding | ElasticError], None]:
        """Embed many inputs over one stream; arguments and errors are those of `Client.embed_stream`."""
        ask = Ask(
            latency_slo_ms=latency_slo_ms,
            embed_dim=embed_dim,
            min_quality=min_quality,
            priority=priority,
            dtype=dtype,
            outputs=outputs,
        )
        ask.request([])  # an error of the objective must not end the task that sends
        deadline = Deadline(budget_ms=None, timeout_s=timeout_s)

        async def messages() -> AsyncIterator[pb.EmbedStreamRequest]:
            position = 0
            async for item in _as_async(inputs):
                message = await asyncio.to_thread(stream_input, item) if isinstance(item, Path) else stream_input(item)
                yield pb.EmbedStreamRequest(id=position, request=ask.request([message]))
                position += 1

        async with open_aio_channel(self.address, self._tls, own_connection=True) as channel:
            send = EmbeddingServiceStub(channel).EmbedStream
            call = send(messages(), timeout=deadline.wait_s(), metadata=self._metadata)
            try:
                async for answer in call:
                    yield stream_answer(answer)
            except grpc.RpcError as error:
                raise error_of(self.address, error, deadline) from error
            finally:
                call.cancel()

    async def generate(
        self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]
    ) -> AsyncGenerator[Generated, None]:
        """A prompt continued by the language model of a server; arguments and errors are those of `Client.generate`."""
        request, deadline = generate_request(prompt, options), generate_deadline(options)
        metadata = self._deadline_metadata(deadline)
        self._retries.call_began()
        for attempt in itertools.count(1):
            call = self._generation.Generate(request, timeout=deadline.wait_s(), metadata=metadata)
            has_begun = False
            try:
                async for reply in call:
                    has_begun = True
                    yield generated(reply)
                return
            except grpc.RpcError as error:
                can_repeat = is_unavailable(error) and not has_begun
                pause_s = self._retries.pause_s(attempt, deadline.left_s()) if can_repeat else None
                if pause_s is None:
                    raise error_of(self.address, error, deadline) from error
                await asyncio.sleep(pause_s)
            finally:
                call.cancel()

    async def info(self) -> pb.InfoReply:
        """What the server can choose from, and its limits; errors are those of `Client.info`."""
        deadline = Deadline(budget_ms=None, timeout_s=self._timeout_s)
        return await self._call(self._stub.Info, pb.InfoRequest(), deadline)

    async def generation_info(self) -> generation_pb.GenerationInfoReply:
        """What a server of a language model can choose from, and its limits; errors are those of `Client.info`."""
        deadline = Deadline(budget_ms=None, timeout_s=self._timeout_s)
        return await self._call(self._generation.Info, generation_pb.GenerationInfoRequest(), deadline)

    async def close(self) -> None:
        """Close the connection; a stream has its own, and ends with its iterator."""
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _deadline_metadata(self, deadline: Deadline) -> list[tuple[str, str]]:
        return [*self._metadata, *(deadline.metadata() if self._synchronised_clocks else [])]

    async def _call(self, method: Callable[..., Awaitable[_T]], request: object, deadline: Deadline) -> _T:
        """One unary call; found nobody, it is repeated as `elastic.retry` allows."""
        metadata = self._deadline_metadata(deadline)
        self._retries.call_began()
        for attempt in itertools.count(1):
            try:
                return await method(request, timeout=deadline.wait_s(), metadata=metadata)
            except grpc.RpcError as error:
                pause_s = self._retries.pause_s(attempt, deadline.left_s()) if is_unavailable(error) else None
                if pause_s is None:
                    raise error_of(self.address, error, deadline) from error
                await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")


async def _image_messages(images: Sequence[bytes | Path | str]) -> list[pb.Input]:
    if any(isinstance(image, Path) for image in images):
        return await asyncio.to_thread(lambda: [image_message(image) for image in images])
    return [image_message(image) for image in images]


async def _as_async(
    inputs: Iterable[bytes | Path | str] | AsyncIterable[bytes | Path | str],
) -> AsyncIterator[bytes | Path | str]:
    if isinstance(inputs, AsyncIterable):
        async for item in inputs:
            yield item
    else:
        for item in inputs:
            yield item
