"""Every request of a load is sent at its time, once, and its end is recorded, over real gRPC."""

import asyncio
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.bench import send as sending
from elastic.bench.load import Load, Samples
from elastic.bench.send import send, send_async, server_info
from elastic.channel import Tls
from elastic.errors import DeadlineExceeded, InvalidRequest, Overloaded, RateLimited, ServerUnavailable, SloInfeasible

from ..certificates import Authority
from .conftest import FakeService, open_load, reply, serving


def closed_load(address: str, concurrency: int, duration_ms: float) -> Load:
    slo_ms = np.full(1, 5_000.0)
    return Load(address=address, contents=[b"image"], slo_ms=slo_ms, concurrency=concurrency, duration_ms=duration_ms)


def test_every_request_is_sent_once_with_its_content_objective_and_width(service: FakeService):
    contents, slo_ms = (b"one", "two", b"three"), np.array([900.0, 1100.0, 900.0, 900.0])
    at_ms = np.array([0.0, 1.0, 2.0, 3.0])
    load = Load(address=service.address, contents=contents, at_ms=at_ms, slo_ms=slo_ms, embed_dim=8)
    found = send(load)
    asked = sorted((call.request.slo.latency_ms, call.request.inputs[0].image, call.request.inputs[0].text)
                   for call in service.calls)  # fmt: skip
    assert asked == [(900.0, b"one", ""), (900.0, b"one", ""), (900.0, b"three", ""), (1100.0, b"", "two")]
    assert {call.request.slo.embed_dim for call in service.calls} == {8}
    assert found.modality.tolist() == ["image", "text", "image", "image"]
    assert found.number.tolist() == [0, 1, 2, 3] and found.slo_ms.tolist() == slo_ms.tolist()


def test_what_the_server_says_of_an_answer_is_recorded(service: FakeService):
    found = send(open_load(service.address, [0.0, 1.0]))
    assert found.outcome.tolist() == ["answered"] * 2 and found.met.all()
    assert found.granularity.tolist() == ["M", "M"] and found.modality.tolist() == ["image", "image"]
    for name, value in {"quality": 0.5, "total_ms": 2.0, "queue_ms": 0.5, "compute_ms": 1.0, "predicted_ms": 1.25,
                        "preprocess_ms": 0.25, "batch_size": 2, "slack_ms": 3.0, "slo_met": True}.items():  # fmt: skip
        assert getattr(found, name).tolist() == [value] * 2, name


def test_deadlines_count_from_the_intended_time_on_the_unix_clock(service: FakeService):
    before_ms = time.time() * 1000
    send(open_load(service.address, [0.0, 300.0], slo_ms=5_000.0))
    first, second = sorted(float(call.metadata["x-deadline-unix-ms"]) for call in service.calls)
    assert second - first == pytest.approx(300.0, abs=0.01)
    assert before_ms + 5_000 <= first <= time.time() * 1000 + 5_000


def test_without_synchronised_clocks_no_deadline_is_sent(service: FakeService):
    send(open_load(service.address, [0.0], absolute_deadlines=False))
    assert "x-deadline-unix-ms" not in service.calls[0].metadata


def test_requests_are_sent_whether_or_not_earlier_ones_were_answered(service: FakeService):
    meeting = threading.Barrier(8)

    def answer(request: pb.EmbedRequest) -> pb.EmbedReply:
        meeting.wait(timeout=20)  # nobody is answered before all eight are there
        return reply()

    service.answer = answer
    assert send(open_load(service.address, [float(n) for n in range(8)], slo_ms=20_000.0)).answered.all()


def test_a_generator_that_falls_behind_says_so_and_counts_it_as_latency(service: FakeService):
    stalled: list[float] = []

    def stall(ended: object, now_ms: float) -> bool:
        if not stalled:
            stalled.append(now_ms)
            time.sleep(0.3)
        return False

    # From the first tick on nothing is sent for 300 ms, in which most of these were intended.
    found = send(open_load(service.address, [float(ms) for ms in range(0, 400, 10)]), stall)
    behind = (found.intended_ms > stalled[0] + 10) & (found.intended_ms < stalled[0] + 50)
    assert behind.sum() >= 3 and (found.lag_ms[behind] > 200).all()
    assert (found.latency_ms >= found.lag_ms).all() and (found.lag_ms >= 0).all()


def test_a_closed_load_has_never_more_requests_open_than_workers(service: FakeService):
    found = send(closed_load(service.address, concurrency=3, duration_ms=300.0))
    assert service.most_at_once <= 3
    assert len(found) == len(service.calls) > 3 and found.answered.all()
    np.testing.assert_array_equal(found.lag_ms < 50, True)
    assert found.number.tolist() == list(range(len(found)))


@pytest.mark.parametrize(
    ("error", "outcome", "name"),
    [
        (Overloaded("full", 5.0), "refused", "Overloaded"),
        (RateLimited("10 requests/s", 50.0), "refused", "RateLimited"),
        (SloInfeasible("1 ms", "the fastest needs 2 ms", "raise it"), "refused", "SloInfeasible"),
        (DeadlineExceeded(5.0, 1.0), "expired", "DeadlineExceeded"),
        (InvalidRequest("inputs", "is empty"), "failed", "InvalidRequest"),
        (ValueError("a bug"), "failed", "INTERNAL"),
        (grpc.RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "Ray is full"), "refused", "RESOURCE_EXHAUSTED"),
        (grpc.RpcError(grpc.StatusCode.UNAVAILABLE, "draining"), "failed", "UNAVAILABLE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_becomes_an_outcome_with_its_name_and_first_words(
    service: FakeService, error: Exception, outcome: str, name: str
):
    def answer(request: pb.EmbedRequest) -> pb.EmbedReply:
        raise error

    service.answer = answer
    found = send(open_load(service.address, [0.0, 5.0]))
    assert found.outcome.tolist() == [outcome] * 2 and found.error.tolist() == [name] * 2
    assert list(found.messages) == [name] and not found.met.any()
    assert (found.done_ms > 0).all()


def test_what_is_not_answered_in_time_and_grace_is_given_up(service: FakeService):
    release = threading.Event()

    def answer(request: pb.EmbedRequest) -> pb.EmbedReply:
        release.wait(timeout=20)
        return reply()

    service.answer = answer
    found = send(open_load(service.address, [0.0, 1.0], slo_ms=50.0, grace_ms=50.0))
    release.set()
    assert found.outcome.tolist() == ["unanswered"] * 2 and set(found.error) == {"DEADLINE_EXCEEDED"}
    assert (found.latency_ms >= 99.0).all()


def test_an_answer_within_the_grace_is_kept_as_a_late_one(service: FakeService):
    def answer(request: pb.EmbedRequest) -> pb.EmbedReply:
        time.sleep(0.1)
        return reply()

    service.answer = answer
    found = send(open_load(service.address, [0.0], slo_ms=20.0, grace_ms=10_000.0))
    assert found.answered.all() and not found.met.any() and found.slo_met.all()


def test_each_connection_is_one_of_its_own_and_they_take_turns(service: FakeService):
    send(open_load(service.address, [0.0] * 6, connections=3))
    peers = [call.peer for call in service.calls]
    assert sorted(peers.count(peer) for peer in set(peers)) == [2, 2, 2]


def test_the_key_is_sent_with_every_request(service: FakeService):
    send(open_load(service.address, [0.0, 1.0], api_key="secret"))
    assert [call.metadata["authorization"] for call in service.calls] == ["Bearer secret"] * 2


def test_an_encrypted_connection_checks_the_servers_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    with serving(grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])) as service:
        assert send(open_load(service.address, [0.0], tls=Tls(ca=authority.ca))).answered.all()
        monkeypatch.setattr(sending, "CONNECT_S", 0.5)
        with pytest.raises(ServerUnavailable):
            send(open_load(service.address, [0.0]))


def test_sending_stops_when_the_watcher_says_so_and_the_span_ends_there(service: FakeService):
    seen: list[int] = []

    def watch(ended: object, now_ms: float) -> bool:
        seen.append(len(ended))  # type: ignore[arg-type]
        return now_ms > 250

    found = send(open_load(service.address, [float(ms) for ms in range(0, 60_000, 20)]), watch)
    assert 250 < found.end_ms < 30_000 and len(found) < 1_500 and found.intended_ms.max() <= found.end_ms
    assert seen[-1] == len(found) and sorted(seen) == seen


def test_a_load_can_be_sent_from_a_running_loop(service: FakeService):
    async def two() -> list[Samples]:
        return await asyncio.gather(*(send_async(open_load(service.address, [0.0, 5.0])) for _ in range(2)))

    assert [found.answered.all() for found in asyncio.run(two())] == [True, True]
    assert len(service.calls) == 4


def test_an_address_without_a_server_is_told_before_the_load_begins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sending, "CONNECT_S", 0.2)
    with pytest.raises(ServerUnavailable, match="elastic serve"):
        send(open_load("127.0.0.1:9", [0.0]))


def test_a_server_says_what_it_is(service: FakeService):
    assert server_info(open_load(service.address, [0.0])).model_name == "fake"


def test_timers_of_the_senders_loop_are_finer_than_a_millisecond():
    loop = sending._precise_loop()
    try:
        assert "Select" in type(loop._selector).__name__  # type: ignore[attr-defined]
    finally:
        loop.close()
