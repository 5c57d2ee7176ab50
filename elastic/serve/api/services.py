"""Registers the services with a gRPC server, whose methods are given the bytes that were sent (`decoding.py` parses).

Serve calls the functions below with each of its servers and a stand-in for the methods, and has every call go through
its own handling of requests: two identities, a span, a slot, metrics, a generator for one reply. What of that is
needed, a replica does itself, so calls reach its methods without it (`answer_here`). In Serve's own proxy, where calls
wait while there is no replica, they take Serve's way.
"""

from operator import methodcaller
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1 import generation_pb2 as generation_pb

_HANDLERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
"""By whether requests and replies are streams."""

_here: list[Any] = []
"""The replica of this process, if it is one's."""


def answer_here(replica: object) -> None:
    """Let `replica` answer the calls to servers of this process that are started from now on."""
    _here[:] = [replica]


def add_embedding_service(servicer: Any, server: Any) -> None:
    """Let the methods of `servicer` answer `elastic.v1.EmbeddingService`."""
    _add(pb.DESCRIPTOR.services_by_name["EmbeddingService"], servicer, server)


def add_generation_service(servicer: Any, server: Any) -> None:
    """Let the methods of `servicer` answer `elastic.v1.GenerationService`."""
    _add(generation_pb.DESCRIPTOR.services_by_name["GenerationService"], servicer, server)


def add_health_service(servicer: Any, server: Any) -> None:
    """Let the methods of `servicer` answer `grpc.health.v1.Health`."""
    _add(health_pb2.DESCRIPTOR.services_by_name["Health"], servicer, server)


def _add(service: Any, servicer: Any, server: Any) -> None:
    """What generated code does, without the part that parses requests."""
    # Ray 2.60 has it, on a private class; without it calls take Serve's way here too, which costs nothing but time.
    if _here and hasattr(server, "add_passthrough_service"):
        (servicer,) = _here
        server.add_passthrough_service(service.full_name)
    handlers = {
        method.name: _HANDLERS[method.client_streaming, method.server_streaming](
            getattr(servicer, method.name), response_serializer=methodcaller("SerializeToString")
        )
        for method in service.methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    server.add_registered_method_handlers(service.full_name, handlers)
