"""Between the wire and the domain: messages both ways, and the one table from errors to status codes.

An error of this package that concerns the caller crosses the wire with its class and fields (trailing metadata
`elastic-error`, JSON), so that the client raises the same error. Anything else is an internal error: it is logged
here with a number, and the caller learns the number only, never a path or a traceback.
"""

import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import grpc
import numpy as np
from google.protobuf.message import Message

from elastic import errors
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.errors import ElasticError, InvalidRequest, Overloaded, RequestTooLarge
from elastic.messages import GRACE_MS
from elastic.profile.tables import Modality
from elastic.quantise import Output, cut
from elastic.serve.access.gate import Caller
from elastic.serve.engine import Computed
from elastic.serve.payloads.outputs import vector_messages
from elastic.serve.payloads.urls import ImageUrl
from elastic.serve.policy import Limit
from elastic.submodel import Slo

logger = logging.getLogger(__name__)

DEADLINE_METADATA = "x-deadline-unix-ms"
ERROR_METADATA = "elastic-error"
RETRY_METADATA = "retry-after-ms"

MAX_MESSAGE_CHARS = 1_000
"""Of one error message; metadata has to stay below 8 KiB."""

STATUS: dict[type[ElasticError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.RequestTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RateLimited: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.SloInfeasible: grpc.StatusCode.FAILED_PRECONDITION,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.ServerUnavailable: grpc.StatusCode.UNAVAILABLE,
    # The operator's business; their messages name files, so callers get a number instead.
    errors.ConfigError: grpc.StatusCode.INTERNAL,
    errors.DataError: grpc.StatusCode.INTERNAL,
    errors.CheckpointError: grpc.StatusCode.INTERNAL,
    errors.ProfileError: grpc.StatusCode.INTERNAL,
    errors.ElasticError: grpc.StatusCode.INTERNAL,
}
"""Every error of the package and the status that a call ends with. INTERNAL ones are not described to the caller."""

LIMITS = {Limit.NONE: pb.LIMIT_NONE, Limit.DEADLINE: pb.LIMIT_DEADLINE, Limit.BACKLOG: pb.LIMIT_BACKLOG}
MODALITIES: dict[Modality, pb.Modality] = {"image": pb.MODALITY_IMAGE, "text": pb.MODALITY_TEXT}

Reply = TypeVar("Reply", bound=Message)


@runtime_checkable
class Context(Caller, Protocol):
    """What a servicer may do to a call (gRPC's `ServicerContext`, or Ray Serve's in its place)."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """End the call with this status."""

    def set_details(self, details: str) -> None:
        """Say why."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str]]) -> None:
        """Send these after the reply."""


@dataclass(frozen=True, slots=True)
class Status:
    """How a call that failed ends."""

    code: grpc.StatusCode
    message: str
    error_json: str = ""
    retry_after_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a message may hold at most."""

    max_items_per_call: int
    default_latency_ms: float


def status_of(error: Exception) -> Status:
    """The status for an error; one without a public meaning is logged and numbered."""
    code = STATUS.get(type(error)) if isinstance(error, ElasticError) else None
    if code is None or code is grpc.StatusCode.INTERNAL:
        number = secrets.token_hex(4)
        logger.error("internal error %s", number, exc_info=error)
        return Status(grpc.StatusCode.INTERNAL, f"internal error {number}; the server's log says more")
    fields = [value[:MAX_MESSAGE_CHARS] if isinstance(value, str) else value for value in error.args]
    payload = json.dumps({"type": type(error).__name__, "fields": fields})
    retry_after_ms = error.retry_after_ms if isinstance(error, Overloaded) else None
    return Status(code, str(error)[:MAX_MESSAGE_CHARS], payload, retry_after_ms)


async def answer(context: Context, empty: Callable[[], Reply], call: Awaitable[Reply]) -> Reply:
    """The reply of a call, or an empty one with the error's status set on the context."""
    try:
        return await call
    except Exception as error:
        # The one place that catches everything: what is not in the table must not reach the caller as it is.
        set_status(context, status_of(error))
        return empty()


async def answer_stream(context: Context, replies: AsyncIterator[Reply]) -> AsyncIterator[Reply]:
    """The replies of a call until it fails, if it does; then the error's status is set on the context."""
    try:
        async for reply in replies:
            yield reply
    except Exception as error:
        set_status(context, status_of(error))  # for the same reason as in `answer`


def set_status(context: Context, status: Status) -> None:
    """End a call with a status."""
    context.set_code(status.code)
    context.set_details(status.message)
    metadata = [(ERROR_METADATA, status.error_json)] if status.error_json else []
    if status.retry_after_ms is not None:
        metadata.append((RETRY_METADATA, f"{status.retry_after_ms:.0f}"))
    context.set_trailing_metadata(metadata)


def failure_message(status: Status) -> pb.Failure:
    """A status as an answer inside a stream."""
    return pb.Failure(code=status.code.value[0], message=status.message, error_json=status.error_json)


def read_contents(request: pb.EmbedRequest, limits: Limits) -> list[bytes | str | ImageUrl]:
    """The inputs of a request.

    Raises:
        InvalidRequest: none, or one without content.
        RequestTooLarge: more than allowed.
    """
    if not request.inputs:
        raise InvalidRequest("inputs", "is empty; send at least one image or text")
    if len(request.inputs) > limits.max_items_per_call:
        raise RequestTooLarge("inputs", len(request.inputs), limits.max_items_per_call)
    return [_content(item, f"inputs[{index}]") for index, item in enumerate(request.inputs)]


def _content(item: pb.Input, field: str) -> bytes | str | ImageUrl:
    match item.WhichOneof("content"):
        case "image":
            return item.image
        case "text":
            return item.text
        case "image_url":
            return ImageUrl(item.image_url)
        case _:
            raise InvalidRequest(field, "has neither image nor text")


def read_slo(request: pb.EmbedRequest, limits: Limits) -> Slo:
    """The objective of a request, with the server's default where it names no latency.

    Raises:
        InvalidRequest: not a number, negative, or contradictory.
    """
    slo = request.slo
    width = slo.WhichOneof("width")
    bounds = slo.embed_dim_range if width == "embed_dim_range" else None
    if width == "embed_dim" and slo.embed_dim == 0:
        raise InvalidRequest("slo.embed_dim", "is 0; leave it out for the full width")
    return Slo(
        latency_ms=slo.latency_ms if slo.latency_ms != 0 else limits.default_latency_ms,
        min_quality=slo.min_quality if slo.HasField("min_quality") else None,
        embed_dim=slo.embed_dim if width == "embed_dim" else None,
        min_embed_dim=bounds.min or None if bounds is not None else None,
        max_embed_dim=bounds.max or None if bounds is not None else None,
        priority=slo.priority,
    )


def remaining_ms(caller: Caller, latency_ms: float, unix_ms: Callable[[], float] | None = None) -> float:
    """What is left of a budget: all of it, or less if the client's absolute deadline is nearer.

    A deadline so long ago that its client would have hung up says that the clocks disagree, and nothing else.

    Raises:
        InvalidRequest: the deadline in the metadata is not a number.
    """
    now_ms = unix_ms() if unix_ms is not None else time.time() * 1000
    for key, value in caller.invocation_metadata():
        if key == DEADLINE_METADATA:
            try:
                deadline_ms = float(value)
            except ValueError:
                deadline_ms = float("nan")
            if not np.isfinite(deadline_ms):
                raise InvalidRequest(DEADLINE_METADATA, f"{value!r} is not milliseconds since 1970")
            left_ms = deadline_ms - now_ms
            return latency_ms if left_ms < -GRACE_MS else min(latency_ms, left_ms)
    return latency_ms


def embed_reply(
    computed: Sequence[Computed], outputs: Sequence[Output], version: str, total_ms: float, slack_ms: float
) -> pb.EmbedReply:
    """The answer to a request and its explanation."""
    return pb.EmbedReply(
        embeddings=[embedding_message(item, outputs) for item in computed],
        model_version=version,
        total_ms=total_ms,
        slack_ms=slack_ms,
        slo_met=slack_ms >= 0,
    )


def embedding_message(item: Computed, outputs: Sequence[Output]) -> pb.Embedding:
    """One embedding in every form that the request lists, float32 if it lists none, with its explanation."""
    explanation = pb.Explanation(
        modality=MODALITIES[item.modality],
        submodel=str(item.level.submodel),
        granularity=item.level.name,
        embed_dim=item.embed_dim,
        quality=item.quality,
        queue_ms=item.queue_ms,
        compute_ms=item.compute_ms,
        predicted_ms=item.predicted_ms,
        preprocess_ms=item.preprocess_ms,
        batch_size=item.batch_size,
        limited_by=LIMITS[item.limit],
        reason=f"{item.level.name} in a batch of {item.batch_size}: {item.limit.value}",
    )
    if outputs:
        vectors = vector_messages(item.embedding, item.embed_dim, item.level, outputs)
        return pb.Embedding(vectors=vectors, explanation=explanation)
    values_f32 = cut(item.embedding, item.embed_dim).astype("<f4").tobytes()
    return pb.Embedding(values_f32=values_f32, explanation=explanation)
