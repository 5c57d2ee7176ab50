"""Messages reach a replica as the bytes that were sent and are parsed there, where what is wrong with them can be said.

Left to gRPC, one that does not parse ends its call with UNKNOWN and the name of a Python class. In a stream, Serve
takes it for the end: the call is a success, and what comes behind it is never answered.
"""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1 import generation_pb2 as generation_pb
from elastic.errors import InvalidRequest

_M = TypeVar("_M", bound=Message)

_HANDLERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether requests and replies are streams."""


def add_embedding_service(servicer: Any, server: Any) -> None:
    """Let the methods of `servicer` answer `elastic.v1.EmbeddingService`; they are given bytes."""
    _add(pb.DESCRIPTOR.services_by_name["EmbeddingService"], servicer, server)


def add_generation_service(servicer: Any, server: Any) -> None:
    """Let the methods of `servicer` answer `elastic.v1.GenerationService`; they are given bytes."""
    _add(generation_pb.DESCRIPTOR.services_by_name["GenerationService"], servicer, server)


def add_health_service(servicer: Any, server: Any) -> None:
    """Let the methods of `servicer` answer `grpc.health.v1.Health`; they are given bytes."""
    _add(health_pb2.DESCRIPTOR.services_by_name["Health"], servicer, server)


def parse(kind: type[_M], message: bytes) -> _M:
    """The message that the bytes hold.

    Raises:
        InvalidRequest: they hold none of this kind.
    """
    try:
        return kind.FromString(message)
    except DecodeError as error:
        raise InvalidRequest("message", f"is not a valid {kind.DESCRIPTOR.full_name}") from error


async def parse_stream(kind: type[_M], messages: AsyncIterable[bytes]) -> AsyncIterator[_M]:
    """The same for every message of a stream, which ends at the first that is none.

    Raises:
        InvalidRequest: as in `parse`.
    """
    async for message in messages:
        yield parse(kind, message)


def _add(service: Any, servicer: Any, server: Any) -> None:
    """What generated code does, without the part that parses; replies are serialised by Serve."""
    handlers = {
        method.name: _HANDLERS[method.client_streaming, method.server_streaming](getattr(servicer, method.name))
        for method in service.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    server.add_registered_method_handlers(service.full_name, handlers)
