import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.client import Client, Embedding
from elastic.errors import (
    DeadlineExceeded,
    ElasticError,
    InvalidRequest,
    Overloaded,
    RequestTooLarge,
    ServerUnavailable,
    SloInfeasible,
    Unauthenticated,
)
from elastic.quantise import Output
from elastic.submodel import Submodel

from .fake_service import OVERLOADED, FakeService, end, running


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def client(service: FakeService) -> Iterator[Client]:
    with running(service) as address, Client(address) as client:
        yield client


def test_an_answer_is_a_numpy_array_with_its_explanation(client: Client) -> None:
    (found,) = client.embed(images=[b"..."])
    assert isinstance(found, Embedding)
    assert found.values.tolist() == pytest.approx([0.6, 0.8])
    assert found.values.flags.writeable
    assert (found.submodel, found.granularity, found.modality) == (Submodel((16, 16)), "S", "image")
    assert (found.limited_by, found.batch_size, found.model_version, found.slo_met) == ("deadline", 2, "v1", True)


def test_one_dtype_is_one_output_and_float32_is_none(client: Client, service: FakeService) -> None:
    client.embed(texts=["x"])
    client.embed(texts=["x"], dtype="int8")
    assert [list(request.outputs) for request in service.requests] == [[], [pb.Output(dtype=pb.DTYPE_INT8)]]


def test_outputs_are_sent_in_order_and_come_back_as_arrays(client: Client, service: FakeService) -> None:
    wide = pb.Vector(embed_dim=4, dtype=pb.DTYPE_INT8, values=b"\x7f\x81\x00\x40", scale=0.005, quality=0.5)
    bits = pb.Vector(embed_dim=2, dtype=pb.DTYPE_BINARY, values=b"\x00", scale=1.0, quality=0.25)
    why = pb.Explanation(submodel="ffn=16x2", modality=pb.MODALITY_TEXT)
    answer = pb.EmbedReply(embeddings=[pb.Embedding(vectors=[wide, bits], explanation=why)])
    service.respond = lambda context: answer
    (found,) = client.embed(texts=["x"], outputs=[Output(4, "int8"), Output(2, "binary")])
    sent = [pb.Output(embed_dim=4, dtype=pb.DTYPE_INT8), pb.Output(embed_dim=2, dtype=pb.DTYPE_BINARY)]
    assert list(service.requests[0].outputs) == sent
    assert found.values.tolist() == found.vectors[0].values.tolist() == [127, -127, 0, 64]
    assert found.vectors[0].dequantised().tolist() == pytest.approx([0.635, -0.635, 0.0, 0.32])
    assert found.vectors[1].dequantised() == pytest.approx(np.array([1.0, -1.0]) / np.sqrt(2))
    assert [vector.quality for vector in found.vectors] == [0.5, 0.25]


def test_a_dtype_beside_outputs_is_refused_before_it_is_sent(client: Client, service: FakeService) -> None:
    with pytest.raises(InvalidRequest, match="beside outputs"):
        client.embed(texts=["x"], dtype="int8", outputs=[Output(4)])
    assert service.requests == []


def test_images_go_before_texts_and_paths_are_read(client: Client, service: FakeService, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"file")
    client.embed(texts=["a cat"], images=[tmp_path / "a.png", b"bytes"])
    assert [item.image or item.text for item in service.requests[0].inputs] == [b"file", b"bytes", "a cat"]


def test_a_string_among_images_is_a_url_for_the_server_to_read(client: Client, service: FakeService) -> None:
    client.embed(images=["https://example.com/a.png"])
    assert service.requests[0].inputs[0].image_url == "https://example.com/a.png"
    with pytest.raises(InvalidRequest, match="a file is a Path"):
        client.embed(images=["a.png"])


def test_the_objective_is_sent_whole(client: Client, service: FakeService) -> None:
    client.embed(texts=["x"], latency_slo_ms=500.0, embed_dim=16, min_quality=0.3, priority=2)
    assert service.requests[0].slo == pb.Slo(latency_ms=500.0, embed_dim=16, min_quality=0.3, priority=2)
    client.embed(texts=["x"], embed_dim=(16, 64))
    assert service.requests[1].slo == pb.Slo(embed_dim_range=pb.EmbedDimRange(min=16, max=64))


def test_a_call_with_an_objective_carries_its_absolute_deadline(client: Client, service: FakeService) -> None:
    before_ms = time.time() * 1000
    client.embed(texts=["x"], latency_slo_ms=800.0)
    deadline_ms = float(service.metadata[0]["x-deadline-unix-ms"])
    assert before_ms + 800.0 <= deadline_ms + 1.0
    assert deadline_ms <= time.time() * 1000 + 801.0
    assert service.remaining_s[0] < 2.5  # the objective, the second that a late answer is waited for, and rounding


def test_without_synchronised_clocks_no_absolute_deadline_is_sent(client: Client, service: FakeService) -> None:
    with Client(client.address, synchronised_clocks=False) as other:
        other.embed(texts=["x"], latency_slo_ms=800.0)
    assert "x-deadline-unix-ms" not in service.metadata[0]


def test_every_call_carries_the_key(client: Client, service: FakeService) -> None:
    with Client(client.address, api_key="secret") as other:
        other.embed(texts=["x"])
        list(other.embed_stream(["x"]))
        other.info()
    assert [metadata.get("authorization") for metadata in service.metadata] == ["Bearer secret"] * 3


@pytest.mark.parametrize("latency_slo_ms", [float("nan"), 0.0, -1.0])
def test_an_impossible_objective_is_refused_before_it_is_sent(
    client: Client, service: FakeService, latency_slo_ms: float
) -> None:
    with pytest.raises(InvalidRequest, match="latency_ms"):
        client.embed(texts=["x"], latency_slo_ms=latency_slo_ms)
    assert service.requests == []


def test_the_servers_error_arrives_with_its_type_and_fields(client: Client, service: FakeService) -> None:
    service.respond = end(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", ("elastic-error", OVERLOADED))
    with pytest.raises(Overloaded) as raised:
        client.embed(texts=["x"])
    assert (raised.value.reason, raised.value.retry_after_ms) == ("busy", 12.5)
    infeasible = '{"type": "SloInfeasible", "fields": ["latency_ms=1", "S needs 4 ms", "raise it"]}'
    service.respond = end(grpc.StatusCode.FAILED_PRECONDITION, "no", ("elastic-error", infeasible))
    with pytest.raises(SloInfeasible, match="S needs 4 ms"):
        client.embed(texts=["x"])


@pytest.mark.parametrize(
    ("code", "details", "error"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Request dropped due to backpressure", Overloaded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (200 vs. 100)", RequestTooLarge),
        (grpc.StatusCode.INVALID_ARGUMENT, "bad", InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, "who are you", Unauthenticated),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", DeadlineExceeded),
        (grpc.StatusCode.INTERNAL, "internal error 1a2b", ElasticError),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!", ElasticError),
    ],
)
def test_a_status_that_is_not_ours_becomes_the_nearest_error(
    client: Client, service: FakeService, code: grpc.StatusCode, details: str, error: type[ElasticError]
) -> None:
    service.respond = end(code, details)
    with pytest.raises(error) as raised:
        client.embed(texts=["x"])
    assert type(raised.value) is error


def test_an_unavailable_server_is_tried_again_and_the_answer_returned(client: Client, service: FakeService) -> None:
    def fail_twice(context: grpc.ServicerContext) -> pb.EmbedReply:
        if len(service.requests) < 3:
            return end(grpc.StatusCode.UNAVAILABLE, "restarting")(context)
        return service.succeed(context)

    service.respond = fail_twice
    assert len(client.embed(texts=["x"], latency_slo_ms=60_000.0)) == 1
    assert len(service.requests) == 3


def test_a_replica_that_shuts_down_is_told_from_a_server_that_is_not_there(
    client: Client, service: FakeService
) -> None:
    draining = '{"type": "ServerUnavailable", "fields": ["replica", "is shutting down", "call again"]}'
    service.respond = end(grpc.StatusCode.UNAVAILABLE, "no", ("elastic-error", draining))
    with pytest.raises(ServerUnavailable, match="is shutting down; call again"):
        client.embed(texts=["x"], latency_slo_ms=1.0)


def test_other_errors_are_not_tried_again(client: Client, service: FakeService) -> None:
    service.respond = end(grpc.StatusCode.INTERNAL, "boom")
    with pytest.raises(ElasticError):
        client.embed(texts=["x"])
    assert len(service.requests) == 1


def test_retries_end_with_the_budget(client: Client, service: FakeService) -> None:
    service.respond = end(grpc.StatusCode.UNAVAILABLE, "restarting")
    with pytest.raises(ServerUnavailable):
        client.embed(texts=["x"], latency_slo_ms=1.0)
    assert len(service.requests) == 1


def test_no_server_is_an_error_that_says_how_to_start_one() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ServerUnavailable, match="elastic serve"):
        client.embed(texts=["x"])


def test_a_stream_yields_positions_with_embeddings_or_errors(client: Client) -> None:
    answers = dict(client.embed_stream([b"image", "text", b"image"]))
    assert isinstance(answers[0], Embedding) and isinstance(answers[2], Embedding)
    assert isinstance(answers[1], Overloaded)


def test_a_stream_has_a_connection_of_its_own_and_closes_it(client: Client, service: FakeService) -> None:
    client.embed(texts=["x"])
    list(client.embed_stream(["x"]))
    list(client.embed_stream(["x"]))
    client.embed(texts=["x"])
    before, first, second, after = service.peers
    assert before == after and len({before, first, second}) == 3


def test_a_stream_that_is_given_up_is_cancelled(client: Client, service: FakeService) -> None:
    answers = client.embed_stream(itertools.repeat("x"))
    next(answers)
    assert not service.stream_ended.is_set()
    answers.close()
    assert service.stream_ended.wait(30)


def test_a_stream_to_nobody_raises() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ServerUnavailable):
        list(client.embed_stream(["x"]))


def test_every_call_has_a_deadline(client: Client, service: FakeService) -> None:
    client.embed(texts=["x"])
    client.info()
    list(client.embed_stream(["x"], timeout_s=50.0))
    limits_s = [round(remaining_s, -1) for remaining_s in service.remaining_s]
    assert limits_s == [30.0, 30.0, 50.0]


def test_a_stream_that_takes_too_long_ends(client: Client, service: FakeService) -> None:
    service.is_silent = True
    with pytest.raises(DeadlineExceeded):
        list(client.embed_stream(["x"], timeout_s=0.05))


def test_a_malformed_objective_of_a_stream_is_refused_before_it_is_sent(client: Client) -> None:
    with pytest.raises(InvalidRequest, match="latency_ms"):
        list(client.embed_stream(["x"], latency_slo_ms=-1.0))


def test_repetitions_are_a_small_part_of_all_calls_while_nothing_answers(
    client: Client, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda pause_s: None)
    service.respond = end(grpc.StatusCode.UNAVAILABLE, "down")
    for _ in range(100):
        with pytest.raises(ServerUnavailable):
            client.embed(texts=["x"])
    assert len(service.requests) <= 100 + 10 + 10  # a tenth of the calls, and what was saved up


def test_info_is_passed_on(client: Client) -> None:
    assert (client.info().model_name, list(client.info().embed_dims)) == ("fake", [1, 2])


def test_the_client_loads_neither_torch_nor_ray() -> None:
    code = "import sys, elastic.client; print({'torch', 'ray', 'timm', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
