"""The client: images and texts in, numpy embeddings and their explanation out. `AsyncClient` is the same for asyncio.

    with Client("127.0.0.1:9000") as client:
        (cat,) = client.embed(images=[Path("cat.png")], latency_slo_ms=10)
        cat.values, cat.granularity, cat.compute_ms, cat.slo_met

Needs grpc and numpy, neither torch nor ray. Errors are those of `elastic.errors`, rebuilt from what the server sent.
"""

import itertools
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar, Unpack

import grpc

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1 import generation_pb2 as generation_pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceStub
from elastic._pb.elastic.v1.generation_pb2_grpc import GenerationServiceStub
from elastic.async_client import AsyncClient
from elastic.channel import Tls, key_metadata, open_channel
from elastic.errors import ElasticError
from elastic.generated import (
    Finished,
    Generated,
    GenerateOptions,
    generate_deadline,
    generate_request,
    generated,
)
from elastic.messages import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    GRACE_MS,
    STREAM_TIMEOUT_S,
    Ask,
    Deadline,
    Embedding,
    Vector,
    embeddings,
    error_of,
    image_message,
    is_unavailable,
    stream_answer,
    stream_input,
)
from elastic.quantise import Dtype, Output
from elastic.retry import NUM_ATTEMPTS, Retries

__all__ = [
    "DEFAULT_ADDRESS",
    "GRACE_MS",
    "AsyncClient",
    "Client",
    "Embedding",
    "Finished",
    "Generated",
    "Output",
    "Tls",
    "Vector",
]

_T = TypeVar("_T")


class Client:
    """A connection to one server, usable from several threads; connects on the first call."""

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
        """Prepare a connection to `host:port`.

        Args:
            address: of the server.
            timeout_s: of calls without a latency objective.
            num_attempts: calls that find no server are repeated up to this number, inside their budget, and only
                while no more than a tenth of the calls are repetitions (`elastic.retry`).
            synchronised_clocks: send the absolute deadline, which counts the way to the server as well. False when
                this machine's clock differs from the server's by more than a few milliseconds: ahead, it costs
                nothing; behind, it takes from the budget, until it is further off than any call is waited for.
            api_key: sent with every call; by default that of the environment variable ELASTIC_API_KEY, if it is set.
            tls: what to trust, and the client's certificate if the server asks for one; None talks in the clear.

        Raises:
            ConfigError: a file of `tls` cannot be read, or the key holds a character that no key has.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._retries = Retries(num_attempts=num_attempts)
        self._synchronised_clocks = synchronised_clocks
        self._metadata = key_metadata(api_key)
        self._tls = tls
        self._channel = open_channel(address, tls)
        self._stub = EmbeddingServiceStub(self._channel)
        self._generation = GenerationServiceStub(self._channel)

    def embed(
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
        """Embeddings of all images, then of all texts; all of them or an error.

        Args:
            images: encoded image files, as bytes, as paths to read, or as URLs of hosts that the server reads from.
            texts: captions or queries.
            latency_slo_ms: budget from now to the answer; by default the server's.
            embed_dim: exact width, or an inclusive range `(min, max)` of which the best is taken; by default full.
            min_quality: least measured recall@1 of the submodel and width.
            priority: larger goes first among requests with equal deadlines.
            dtype: what the values are: float32, float16, int8, uint8, binary or ubinary (`elastic.quantise`).
            outputs: several widths and dtypes at once, in place of `dtype`.

        Raises:
            InvalidRequest: an input or the objective is malformed; `field` says which.
            RequestTooLarge: above a limit of `info().limits`.
            SloInfeasible: not even an idle server could meet the objective.
            Overloaded: refused now; try again after `retry_after_ms`. RateLimited, one of them, if only for this key.
            Unauthenticated: the server asks for an API key that it knows.
            DeadlineExceeded: the budget ran out.
            ServerUnavailable: nothing answers at the address.
        """
        ask = Ask(
            latency_slo_ms=latency_slo_ms,
            embed_dim=embed_dim,
            min_quality=min_quality,
            priority=priority,
            dtype=dtype,
            outputs=outputs,
        )
        deadline = Deadline(budget_ms=latency_slo_ms, timeout_s=self._timeout_s)
        inputs = [*map(image_message, images), *(pb.Input(text=text) for text in texts)]
        return embeddings(self._call(self._stub.Embed, ask.request(inputs), deadline))

    def embed_stream(
        self,
        inputs: Iterable[bytes | Path | str],
        *,
        latency_slo_ms: float | None = None,
        embed_dim: int | tuple[int, int] | None = None,
        min_quality: float | None = None,
        priority: int = 0,
        dtype: Dtype = "float32",
        outputs: Sequence[Output] = (),
        timeout_s: float = STREAM_TIMEOUT_S,
    ) -> Generator[tuple[int, Embedding | ElasticError], None, None]:
        """Embed many inputs over one stream, each a request of its own: (position, embedding or its error).

        Answers come as they are ready, not in order. A `str` is a text, bytes and paths are images. `timeout_s` is
        of the whole stream, the other arguments are those of `embed`. A stream has a connection of its own: where the
        server reads no more of it for a while, all that comes behind it on the same connection waits, too. Closing the
        iterator ends the stream.

        Raises:
            InvalidRequest: the objective is malformed.
            Unauthenticated: the server asks for an API key that it knows.
            DeadlineExceeded: the stream did not end within `timeout_s`.
            ServerUnavailable: nothing answers, or the stream broke.
        """
        ask = Ask(
            latency_slo_ms=latency_slo_ms,
            embed_dim=embed_dim,
            min_quality=min_quality,
            priority=priority,
            dtype=dtype,
            outputs=outputs,
        )
        ask.request([])  # an error of the objective must not end the thread that sends
        deadline = Deadline(budget_ms=None, timeout_s=timeout_s)
        messages = (
            pb.EmbedStreamRequest(id=position, request=ask.request([stream_input(item)]))
            for position, item in enumerate(inputs)
        )
        with open_channel(self.address, self._tls, own_connection=True) as channel:
            send = EmbeddingServiceStub(channel).EmbedStream
            try:
                for answer in send(messages, timeout=deadline.wait_s(), metadata=self._metadata):
                    yield stream_answer(answer)
            except grpc.RpcError as error:
                raise error_of(self.address, error, deadline) from error

    def generate(
        self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]
    ) -> Generator[Generated, None, None]:
        """A prompt (a text, or tokens of the model's own vocabulary) continued by the language model of a server.

        Pieces come as they are generated, the last with how it ended (`Generated.finished`). Nothing is sent before the
        first is asked for; closing the iterator ends the generation. A call that found no server is repeated as any
        other, until its first piece.

        Raises:
            InvalidRequest: the prompt or an option is malformed, or both do not fit the model's context.
            SloInfeasible: not even an idle server could keep the objective.
            Overloaded: it could not be kept beside what runs, or no place is free; try again after `retry_after_ms`.
            Unauthenticated: the server asks for an API key that it knows.
            DeadlineExceeded: `timeout_s` was over before the end.
            ServerUnavailable: nothing answers at the address, or the server gave out on the way.
        """
        request, deadline = generate_request(prompt, options), generate_deadline(options)
        metadata = self._deadline_metadata(deadline)
        self._retries.call_began()
        for attempt in itertools.count(1):
            call = self._generation.Generate(request, timeout=deadline.wait_s(), metadata=metadata)
            has_begun = False
            try:
                for reply in call:
                    has_begun = True
                    yield generated(reply)
                return
            except grpc.RpcError as error:
                can_repeat = is_unavailable(error) and not has_begun
                pause_s = self._retries.pause_s(attempt, deadline.left_s()) if can_repeat else None
                if pause_s is None:
                    raise error_of(self.address, error, deadline) from error
                time.sleep(pause_s)
            finally:
                call.cancel()

    def info(self) -> pb.InfoReply:
        """What the server can choose from, and its limits.

        Raises:
            Unauthenticated: the server asks for an API key that it knows.
            ServerUnavailable: nothing answers at the address.
        """
        return self._call(self._stub.Info, pb.InfoRequest(), Deadline(budget_ms=None, timeout_s=self._timeout_s))

    def generation_info(self) -> generation_pb.GenerationInfoReply:
        """What a server of a language model can choose from, and its limits; errors are those of `info`."""
        deadline = Deadline(budget_ms=None, timeout_s=self._timeout_s)
        return self._call(self._generation.Info, generation_pb.GenerationInfoRequest(), deadline)

    def close(self) -> None:
        """Close the connection; a stream has its own, and ends with its iterator."""
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _deadline_metadata(self, deadline: Deadline) -> list[tuple[str, str]]:
        return [*self._metadata, *(deadline.metadata() if self._synchronised_clocks else [])]

    def _call(self, method: Callable[..., _T], request: object, deadline: Deadline) -> _T:
        """One unary call; found nobody, it is repeated as `elastic.retry` allows."""
        metadata = self._deadline_metadata(deadline)
        self._retries.call_began()
        for attempt in itertools.count(1):
            try:
                return method(request, timeout=deadline.wait_s(), metadata=metadata)
            except grpc.RpcError as error:
                pause_s = self._retries.pause_s(attempt, deadline.left_s()) if is_unavailable(error) else None
                if pause_s is None:
                    raise error_of(self.address, error, deadline) from error
                time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")
