"""What both clients say and hear: arguments into messages, replies into arrays, statuses into errors.

Needs grpc and numpy, neither torch nor ray.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.channel import KEY_ADVICE, unavailable_advice
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
STREAM_TIMEOUT_S = 3_600.0
"""Of a whole stream."""
GRACE_MS = 1_000.0
"""How long after its deadline an answer is still waited for: late, it says by how much and why."""

ERROR_METADATA = "elastic-error"
DEADLINE_METADATA = "x-deadline-unix-ms"

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
        ServerUnavailable,
    )
}
_DTYPE_OF: dict[int, Dtype] = {pb.Dtype.Value(f"DTYPE_{name.upper()}"): name for name in DTYPES}
_TOO_LARGE = re.compile(r"larger than max \((\d+) vs\.? (\d+)\)")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What every request of a call asks for, beside its inputs; the arguments of `Client.embed`."""

    latency_slo_ms: float | None = None
    embed_dim: int | tuple[int, int] | None = None
    min_quality: float | None = None
    priority: int = 0
    dtype: Dtype = "float32"
    outputs: Sequence[Output] = ()

    def request(self, inputs: Iterable[pb.Input]) -> pb.EmbedRequest:
        """The message.

        Raises:
            InvalidRequest: the objective or the outputs are malformed; no round trip is needed to know it.
        """
        return pb.EmbedRequest(inputs=inputs, slo=self._slo(), outputs=self._outputs())

    def _slo(self) -> pb.Slo:
        bounds = self.embed_dim if isinstance(self.embed_dim, tuple) else (None, None)
        exact = None if isinstance(self.embed_dim, tuple) else self.embed_dim
        if self.latency_slo_ms is not None or self.embed_dim is not None:
            latency_ms = 1.0 if self.latency_slo_ms is None else self.latency_slo_ms
            Slo(latency_ms, self.min_quality, exact, *bounds, self.priority)
        message = pb.Slo(latency_ms=self.latency_slo_ms or 0.0, min_quality=self.min_quality, priority=self.priority)
        if exact is not None:
            message.embed_dim = exact
        elif self.embed_dim is not None:
            message.embed_dim_range.CopyFrom(pb.EmbedDimRange(min=bounds[0], max=bounds[1]))
        return message

    def _outputs(self) -> list[pb.Output]:
        if self.dtype != "float32" and self.outputs:
            raise InvalidRequest("dtype", "stands for one output; leave it out beside outputs")
        listed = self.outputs or ([] if self.dtype == "float32" else [Output(dtype=self.dtype)])
        return [pb.Output(embed_dim=item.embed_dim, dtype=f"DTYPE_{item.dtype.upper()}") for item in listed]


@dataclass(frozen=True, kw_only=True, slots=True)
class Deadline:
    """How long one call may take. A budget is the caller's objective; without one there is a timeout only."""

    budget_ms: float | None
    timeout_s: float
    clock: Callable[[], float] = time.monotonic
    began_s: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "began_s", self.clock())

    def wait_s(self) -> float:
        """How long an answer is waited for from now on: for a late one too, as it says why it is."""
        limit_s = self.timeout_s if self.budget_ms is None else (self.budget_ms + GRACE_MS) / 1000
        return max(0.0, limit_s - (self.clock() - self.began_s))

    def left_s(self) -> float:
        """What is left of the budget, in which the call may still be repeated."""
        limit_s = self.timeout_s if self.budget_ms is None else self.budget_ms / 1000
        return limit_s - (self.clock() - self.began_s)

    def metadata(self) -> list[tuple[str, str]]:
        """The absolute deadline, for a server whose clock agrees with ours."""
        if self.budget_ms is None:
            return []
        return [(DEADLINE_METADATA, f"{(time.time() + self.left_s()) * 1000:.3f}")]


def image_message(item: bytes | Path | str) -> pb.Input:
    """An image: its bytes, the file to read them from, or the URL for the server to read them from.

    Raises:
        InvalidRequest: a string that is no URL.
    """
    if not isinstance(item, str):
        return pb.Input(image=item.read_bytes() if isinstance(item, Path) else item)
    if not item.startswith(("http://", "https://")):
        raise InvalidRequest("images", f"{item[:100]!r} is not a URL; a file is a Path")
    return pb.Input(image_url=item)


def stream_input(item: bytes | Path | str) -> pb.Input:
    """An input of a stream, where a string is a text."""
    return pb.Input(text=item) if isinstance(item, str) else image_message(item)


def embeddings(reply: pb.EmbedReply) -> list[Embedding]:
    """What a reply holds, in the order of the inputs."""
    return [_embedding(item, reply) for item in reply.embeddings]


def stream_answer(answer: pb.EmbedStreamReply) -> tuple[int, Embedding | ElasticError]:
    """The position of one answer of a stream, with what it is."""
    if answer.WhichOneof("outcome") == "reply":
        return answer.id, embeddings(answer.reply)[0]
    failure = answer.failure
    return answer.id, _rebuilt(failure.error_json) if failure.error_json else ElasticError(failure.message)


def error_of(address: str, error: grpc.RpcError, deadline: Deadline) -> ElasticError:
    """The error that the server raised, or the one that fits a status from gRPC, HAProxy or Ray itself."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError)  # of every error that a call raises
    code, details = error.code(), error.details() or ""
    # Pairs by name: the two kinds of calls have different classes for them.
    metadata = {str(key): value for key, value in error.trailing_metadata() or ()}
    if ERROR_METADATA in metadata:
        return _rebuilt(str(metadata[ERROR_METADATA]))
    too_large = _TOO_LARGE.search(details)
    if too_large is not None:
        return RequestTooLarge("message", int(too_large[1]), int(too_large[2]))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        if deadline.budget_ms is None:
            return DeadlineExceeded(deadline.timeout_s * 1000, 0.0)
        return DeadlineExceeded(deadline.budget_ms, GRACE_MS)
    return _nearest(address, code, details)


def is_unavailable(error: grpc.RpcError) -> bool:
    """Whether a call found nobody who could have begun to answer it."""
    return isinstance(error, grpc.Call | grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE


def _nearest(address: str, code: grpc.StatusCode, details: str) -> ElasticError:
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return ServerUnavailable(address, f"no server answers ({details})", unavailable_advice(details))
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return Overloaded(details, 100.0)
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(details, KEY_ADVICE)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return InvalidRequest("request", details)
        case _:
            return ElasticError(f"{address}: {code.name}: {details}")


def _rebuilt(error_json: str) -> ElasticError:
    sent = json.loads(error_json)
    return _PUBLIC_ERRORS[sent["type"]](*sent["fields"])


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
