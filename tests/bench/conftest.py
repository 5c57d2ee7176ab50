"""An embedding service without a model, behind real gRPC on loopback, and samples with round numbers."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceServicer, add_EmbeddingServiceServicer_to_server
from elastic.bench.load import Load, Sample, Samples
from elastic.serve.api.grpc import set_status, status_of


def reply(granularity: str = "M", quality: float = 0.5, total_ms: float = 2.0) -> pb.EmbedReply:
    why = pb.Explanation(
        modality=pb.MODALITY_IMAGE,
        granularity=granularity,
        embed_dim=2,
        quality=quality,
        queue_ms=0.5,
        compute_ms=1.0,
        predicted_ms=1.25,
        preprocess_ms=0.25,
        batch_size=2,
    )
    embedding = pb.Embedding(values_f32=np.ones(2, "<f4").tobytes(), explanation=why)
    return pb.EmbedReply(embeddings=[embedding], model_version="v", total_ms=total_ms, slack_ms=3.0, slo_met=True)


@dataclass
class Call:
    """One request that has arrived."""

    request: pb.EmbedRequest
    metadata: dict[str, str]
    peer: str


@dataclass
class FakeService(EmbeddingServiceServicer):
    """Answers what a test says, errors as the real service sends them, and remembers what it was asked."""

    answer: Callable[[pb.EmbedRequest], pb.EmbedReply] = lambda request: reply()
    calls: list[Call] = field(default_factory=list)
    address: str = ""
    modalities: tuple[pb.Modality, ...] = (pb.MODALITY_IMAGE,)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def Embed(self, request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedReply:
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        with self._lock:
            self.calls.append(Call(request, metadata, context.peer()))
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            return self.answer(request)
        except grpc.RpcError as error:
            context.abort(*error.args)
        except Exception as error:
            set_status(context, status_of(error))  # type: ignore[arg-type]
            return pb.EmbedReply()
        finally:
            with self._lock:
                self._now -= 1

    def Info(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.InfoReply:
        return pb.InfoReply(model_name="fake", model_version="v", device="a test", modalities=self.modalities)


@contextmanager
def serving(tls: grpc.ServerCredentials | None = None) -> Iterator[FakeService]:
    fake = FakeService()
    server = grpc.server(ThreadPoolExecutor(16))
    add_EmbeddingServiceServicer_to_server(fake, server)
    free = "127.0.0.1:0"
    port = server.add_insecure_port(free) if tls is None else server.add_secure_port(free, tls)
    fake.address = f"127.0.0.1:{port}"
    server.start()
    yield fake
    server.stop(None).wait()


@pytest.fixture
def service() -> Iterator[FakeService]:
    with serving() as fake:
        yield fake


def open_load(address: str, at_ms: list[float], slo_ms: float = 5_000.0, **more: object) -> Load:
    slos: dict = {"slo_ms": np.full(len(at_ms), slo_ms), "duration_ms": 100.0}
    return Load(address=address, contents=[b"image"], at_ms=np.array(at_ms), **slos | more)


def samples(*rows: Sample, end_ms: float = 1000.0, **more: object) -> Samples:
    return Samples.of(rows, end_ms, {}, **more)  # type: ignore[arg-type]


def answered(number: int, intended_ms: float, latency_ms: float, slo_ms: float = 10.0, **more: object) -> Sample:
    """An answer by M of quality 0.5 that spent 2 ms in the server, sent in time."""
    values: dict = {"granularity": "M", "quality": 0.5, "modality": "image", "total_ms": 2.0, "batch_size": 2}
    values |= {"slo_met": True, "slack_ms": 8.0, "sent_ms": intended_ms} | more
    return Sample(number, slo_ms, intended_ms, done_ms=intended_ms + latency_ms, outcome="answered", **values)
