"""The client: images and texts in, numpy embeddings and their explanation out.

    with Client("127.0.0.1:9000") as client:
        (cat,) = client.embed(images=[Path("cat.png")], latency_slo_ms=10)
        cat.values, cat.granularity, cat.compute_ms, cat.slo_met

Needs grpc and numpy, neither torch nor ray. Errors are those of `elastic.errors`, rebuilt from what the server sent.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import grpc
import numpy as np

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceStub
from elastic.channel import KEY_ADVICE, Tls, key_metadata, open_channel, unavailable_advice
from elastic.errors import (
    DeadlineExceeded,
    ElasticError,
    InvalidRequest,
    Overloaded,
    RateLimited,
    RequestTooLarge,
    ServerUnavailable,
    SloInfeasible,
    Unauthenticated,
)
from elastic.quantise import DTYPES, Dtype, Output, dequantise, from_bytes
from elastic.submodel import Slo, Submodel

DEFAULT_ADDRESS = "127.0.0.1:9000"
DEFAULT_TIMEOUT_S = 30.0
"""Of a call without a latency objective."""
GRACE_MS = 1_000.0
"""How long after its deadline an answer is still waited for: late, it says by how much and why."""
FIRST_BACKOFF_S = 0.02

_PUBLIC_ERRORS = {
    kind.__name__: kind
    for kind in (
        InvalidRequest,
        RequestTooLarge,
        SloInfeasible,
        Overloaded,
        RateLimited,
        DeadlineExceeded,
        Unauthenticated,
    )
}
_DTYPE_OF: dict[int, Dtype] = {pb.Dtype.Value(f"DTYPE_{name.upper()}"): name for name in DTYPES}
_TOO_LARGE = re.compile(r"larger than max \((\d+) vs\.? (\d+)\)")

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, eq=False)
class Vector:
    """An embedding at one width, written as one dtype; `elastic.quantise` says what each is."""

    values: np.ndarray
    """`[embed_dim]`, or an eighth of that (rounded up) of packed bits."""
    dtype: Dtype
    embed_dim: int
    scale: float
    """What leads back from int8 and uint8; 1 for the others."""
    quality: float
    """Measured recall@1 at this width, before quantisation."""

    def dequantised(self) -> np.ndarray:
        """The float32 vector `[embed_dim]` that the values stand for."""
        return dequantise(self.values, self.dtype, self.embed_dim, self.scale)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """One embedding, and how the server came to it."""

    vectors: tuple[Vector, ...]
    """One per output that was asked for, in that order; from the same forward pass."""
    modality: str
    submodel: Submodel
    granularity: str
    """The trained granularity's name (S, M, L, XL), or the submodel's text form."""
    embed_dim: int
    quality: float
    """Measured recall@1 of queries embedded like this, against an index of the full model."""
    queue_ms: float
    compute_ms: float
    """Model time of the batch it was in."""
    predicted_ms: float
    """What the server expected `compute_ms` to be."""
    preprocess_ms: float
    total_ms: float
    """From the arrival of the request at the server to its reply."""
    slack_ms: float
    """What was left of the budget; negative when it was missed."""
    slo_met: bool
    batch_size: int
    limited_by: str
    """What kept the server from a larger submodel: none, deadline or backlog."""
    reason: str
    model_version: str

    @property
    def values(self) -> np.ndarray:
        """The first vector's: float32 `[embed_dim]` and L2-normalised, unless outputs or a dtype were asked for."""
        return self.vectors[0].values


class Client:
    """A connection to one server, usable from several threads; connects on the first call."""

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        num_attempts: int = 4,
        synchronised_clocks: bool = True,
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        """Prepare a connection to `host:port`.

        Args:
            address: of the server.
            timeout_s: of calls without a latency objective.
            num_attempts: calls that find no server are repeated up to this number, inside their budget.
            synchronised_clocks: send the absolute deadline, which counts the way to the server as well. False when
                this machine's clock differs from the server's by more than a few milliseconds.
            api_key: sent with every call; by default that of the environment variable ELASTIC_API_KEY, if it is set.
            tls: what to trust, and the client's certificate if the server asks for one; None talks in the clear.

        Raises:
            ConfigError: a file of `tls` cannot be read, or the key holds a character that no key has.
        """
        self.address = address
        self._timeout_s = timeout_s
        self._num_attempts = num_attempts
        self._synchronised_clocks = synchronised_clocks
        self._metadata = key_metadata(api_key)
        self._channel = open_channel(address, tls)
        self._stub = EmbeddingServiceStub(self._channel)

    def embed(
        self,
        *,
        images: Sequence[bytes | Path] = (),
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
            images: encoded image files, as bytes or as paths to read.
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
        slo = _slo_message(latency_slo_ms, embed_dim, min_quality, priority)
        inputs = [_input_message(image) for image in images] + [_input_message(text) for text in texts]
        request = pb.EmbedRequest(inputs=inputs, slo=slo, outputs=_output_messages(dtype, outputs))
        return _embeddings(self._call(self._stub.Embed, request, latency_slo_ms))

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
    ) -> Iterator[tuple[int, Embedding | ElasticError]]:
        """Embed many inputs over one stream, each a request of its own: (position, embedding or its error).

        Answers come as they are ready, not in order. A `str` is a text, bytes and paths are images. The other
        arguments are those of `embed`.

        Raises:
            Unauthenticated: the server asks for an API key that it knows.
            ServerUnavailable: nothing answers, or the stream broke.
        """
        slo = _slo_message(latency_slo_ms, embed_dim, min_quality, priority)
        forms = _output_messages(dtype, outputs)

        def messages() -> Iterator[pb.EmbedStreamRequest]:
            for position, item in enumerate(inputs):
                request = pb.EmbedRequest(inputs=[_input_message(item)], slo=slo, outputs=forms)
                yield pb.EmbedStreamRequest(id=position, request=request)

        try:
            for answer in self._stub.EmbedStream(messages(), metadata=self._metadata):
                if answer.WhichOneof("outcome") == "reply":
                    yield answer.id, _embeddings(answer.reply)[0]
                else:
                    yield answer.id, _failure(answer.failure)
        except grpc.RpcError as error:
            raise self._error(error, latency_slo_ms) from error

    def info(self) -> pb.InfoReply:
        """What the server can choose from, and its limits.

        Raises:
            Unauthenticated: the server asks for an API key that it knows.
            ServerUnavailable: nothing answers at the address.
        """
        return self._call(self._stub.Info, pb.InfoRequest(), None)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: Callable[..., _T], request: object, budget_ms: float | None) -> _T:
        """One unary call; found nobody, it is repeated with growing pauses while the budget lasts."""
        begin_s = time.monotonic()
        limit_s = self._timeout_s if budget_ms is None else (budget_ms + GRACE_MS) / 1000
        budget_s = limit_s if budget_ms is None else budget_ms / 1000
        metadata = list(self._metadata)
        if budget_ms is not None and self._synchronised_clocks:
            metadata.append(("x-deadline-unix-ms", f"{time.time() * 1000 + budget_ms:.3f}"))
        for attempt in range(1, self._num_attempts + 1):
            spent_s = time.monotonic() - begin_s
            try:
                return method(request, timeout=limit_s - spent_s, metadata=metadata)
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)
                pause_s = FIRST_BACKOFF_S * 2 ** (attempt - 1)
                spent_s = time.monotonic() - begin_s
                is_last = attempt == self._num_attempts or spent_s + pause_s >= budget_s
                if error.code() is not grpc.StatusCode.UNAVAILABLE or is_last:
                    raise self._error(error, budget_ms) from error
                time.sleep(pause_s)
        raise AssertionError("the last attempt returns or raises")

    def _error(self, error: grpc.RpcError, budget_ms: float | None) -> ElasticError:
        """The error that the server raised, or the one that fits a status from gRPC, HAProxy or Ray itself."""
        assert isinstance(error, grpc.Call)  # of every error that a call raises
        code, details = error.code(), error.details() or ""
        for entry in error.trailing_metadata() or ():
            if entry.key == "elastic-error":
                return _rebuild(str(entry.value))
        too_large = _TOO_LARGE.search(details)
        if too_large is not None:
            return RequestTooLarge("message", int(too_large[1]), int(too_large[2]))
        if code is grpc.StatusCode.UNAVAILABLE:
            return ServerUnavailable(self.address, f"no server answers ({details})", unavailable_advice(details))
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            late_ms = 0.0 if budget_ms is None else GRACE_MS
            return DeadlineExceeded(self._timeout_s * 1000 if budget_ms is None else budget_ms, late_ms)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(details, 100.0)
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(details, KEY_ADVICE)
        if code is grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest("request", details)
        return ElasticError(f"{self.address}: {code.name}: {details}")


def _rebuild(error_json: str) -> ElasticError:
    sent = json.loads(error_json)
    return _PUBLIC_ERRORS[sent["type"]](*sent["fields"])


def _failure(failure: pb.Failure) -> ElasticError:
    return _rebuild(failure.error_json) if failure.error_json else ElasticError(failure.message)


def _input_message(item: bytes | Path | str) -> pb.Input:
    if isinstance(item, str):
        return pb.Input(text=item)
    return pb.Input(image=item.read_bytes() if isinstance(item, Path) else item)


def _slo_message(
    latency_ms: float | None, embed_dim: int | tuple[int, int] | None, min_quality: float | None, priority: int
) -> pb.Slo:
    bounds = embed_dim if isinstance(embed_dim, tuple) else (None, None)
    exact = None if isinstance(embed_dim, tuple) else embed_dim
    if latency_ms is not None or embed_dim is not None:
        # Checked here too: the same rules, without the round trip.
        Slo(1.0 if latency_ms is None else latency_ms, min_quality, exact, *bounds, priority)
    message = pb.Slo(latency_ms=latency_ms or 0.0, min_quality=min_quality, priority=priority)
    if exact is not None:
        message.embed_dim = exact
    elif embed_dim is not None:
        message.embed_dim_range.CopyFrom(pb.EmbedDimRange(min=bounds[0], max=bounds[1]))
    return message


def _output_messages(dtype: Dtype, outputs: Sequence[Output]) -> list[pb.Output]:
    if dtype != "float32" and outputs:
        raise InvalidRequest("dtype", "stands for one output; leave it out beside outputs")
    listed = outputs or ([] if dtype == "float32" else [Output(dtype=dtype)])
    return [pb.Output(embed_dim=item.embed_dim, dtype=f"DTYPE_{item.dtype.upper()}") for item in listed]


def _embeddings(reply: pb.EmbedReply) -> list[Embedding]:
    return [_embedding(item, reply) for item in reply.embeddings]


def _embedding(item: pb.Embedding, reply: pb.EmbedReply) -> Embedding:
    why = item.explanation
    return Embedding(
        vectors=_vectors(item),
        modality=pb.Modality.Name(why.modality).removeprefix("MODALITY_").lower(),
        submodel=Submodel.parse(why.submodel),
        granularity=why.granularity,
        embed_dim=why.embed_dim,
        quality=why.quality,
        queue_ms=why.queue_ms,
        compute_ms=why.compute_ms,
        predicted_ms=why.predicted_ms,
        preprocess_ms=why.preprocess_ms,
        total_ms=reply.total_ms,
        slack_ms=reply.slack_ms,
        slo_met=reply.slo_met,
        batch_size=why.batch_size,
        limited_by=pb.Limit.Name(why.limited_by).removeprefix("LIMIT_").lower(),
        reason=why.reason,
        model_version=reply.model_version,
    )


def _vectors(item: pb.Embedding) -> tuple[Vector, ...]:
    if item.vectors:
        return tuple(_vector(message) for message in item.vectors)
    why = item.explanation
    return (Vector(from_bytes(item.values_f32, "float32"), "float32", why.embed_dim, 1.0, why.quality),)


def _vector(message: pb.Vector) -> Vector:
    dtype = _DTYPE_OF[message.dtype]
    return Vector(from_bytes(message.values, dtype), dtype, message.embed_dim, message.scale, message.quality)
