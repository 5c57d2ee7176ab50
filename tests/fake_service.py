"""A server of the embedding service whose answers a test chooses, for the tests of both clients."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import (
    EmbeddingServiceServicer,
    add_EmbeddingServiceServicer_to_server,
)

OVERLOADED = '{"type": "Overloaded", "fields": ["busy", 12.5]}'


def embedding(values: list[float]) -> pb.Embedding:
    why = pb.Explanation(
        modality=pb.MODALITY_IMAGE,
        submodel="ffn=16x2",
        granularity="S",
        embed_dim=len(values),
        compute_ms=3.0,
        batch_size=2,
        limited_by=pb.LIMIT_DEADLINE,
    )
    return pb.Embedding(values_f32=np.array(values, "<f4").tobytes(), explanation=why)


class FakeService(EmbeddingServiceServicer):
    """Answers every call as the test says, and remembers the calls."""

    def __init__(self) -> None:
        self.requests: list[pb.EmbedRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.remaining_s: list[float] = []
        self.peers: list[str] = []
        """Where the connections of the calls come from."""
        self.stream_ended = threading.Event()
        self.is_silent = False
        self.respond: Callable[[grpc.ServicerContext], pb.EmbedReply] = self.succeed

    @staticmethod
    def succeed(context: grpc.ServicerContext) -> pb.EmbedReply:
        return pb.EmbedReply(embeddings=[embedding([0.6, 0.8])], model_version="v1", total_ms=5.0, slo_met=True)

    def Embed(self, request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedReply:
        self.requests.append(request)
        self._note(context)
        return self.respond(context)

    def EmbedStream(
        self, request_iterator: Iterator[pb.EmbedStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.EmbedStreamReply]:
        self._note(context)
        context.add_callback(self.stream_ended.set)
        while self.is_silent and context.is_active():
            time.sleep(0.01)
        for message in request_iterator:
            if message.id == 1:
                failure = pb.Failure(code=8, message="busy", error_json=OVERLOADED)
                yield pb.EmbedStreamReply(id=message.id, failure=failure)
            else:
                yield pb.EmbedStreamReply(id=message.id, reply=self.succeed(context))

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.InfoReply:
        self._note(context)
        return pb.InfoReply(model_name="fake", embed_dims=[1, 2])

    def _note(self, context: grpc.ServicerContext) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        self.remaining_s.append(context.time_remaining())
        self.peers.append(context.peer())


def end(
    code: grpc.StatusCode, details: str, *metadata: tuple[str, str]
) -> Callable[[grpc.ServicerContext], pb.EmbedReply]:
    def respond(context: grpc.ServicerContext) -> pb.EmbedReply:
        context.set_trailing_metadata(metadata)
        context.set_code(code)
        context.set_details(details)
        return pb.EmbedReply()

    return respond


@contextmanager
def running(service: FakeService, address: str = "127.0.0.1:0") -> Iterator[str]:
    """The address at which a service answers until the block ends."""
    server = grpc.server(ThreadPoolExecutor(4))
    add_EmbeddingServiceServicer_to_server(service, server)
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)
