"""Faults put upon a running server with two replicas; `python -m benchmarks.faults` puts more of them, for longer.

Each test leaves the server as whole as it was.
"""

import asyncio
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from benchmarks.faults.connections import GARBAGE, HALF_OPEN, closed_after_s
from benchmarks.faults.mutations import INTERNALS, examples, send_mutated
from benchmarks.serving.processes import HAPROXY, REPLICA, replicas, tree
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.channel import open_channel
from elastic.client import AsyncClient, Client, Embedding
from elastic.serve.ingress.haproxy import UPLOAD_BYTES
from elastic.serve.telemetry.snapshot import Interval, Snapshot

from .callers import RELAXED_MS, Callers
from .conftest import NUM_REPLICAS, SILENCE_S, ServerProcess

pytestmark = [pytest.mark.ray, pytest.mark.serve, pytest.mark.slow]

PATIENCE_S = 60.0
SERVICE, HEALTH = "/elastic.v1.EmbeddingService", "/grpc.health.v1.Health"


def snapshot(port: int) -> Snapshot:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        return Snapshot.parse(page.read().decode(), time.time())


def http2_settings(port: int) -> dict[int, int]:
    """What the server says of itself in its first frame (RFC 9113, section 6.5)."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        connection.sendall(preface)
        frames = connection.makefile("rb")
        head = frames.read(9)
        assert head[3] == 4, "no SETTINGS"
        return dict(struct.iter_unpack(">HI", frames.read(int.from_bytes(head[:3], "big"))))


def embed(address: str, png: bytes) -> Embedding:
    with Client(address) as client:
        (found,) = client.embed(images=[png], latency_slo_ms=RELAXED_MS)
    return found


def ended(address: str, method: str, *messages: bytes) -> tuple[grpc.StatusCode, str]:
    """How a call with these messages ends."""
    with open_channel(address) as channel:
        try:
            match method.rpartition("/")[2]:
                case "EmbedStream":
                    list(channel.stream_stream(method)(iter(messages), timeout=PATIENCE_S))
                case "Watch":
                    list(channel.unary_stream(method)(messages[0], timeout=PATIENCE_S))
                case _:
                    channel.unary_unary(method)(messages[0], timeout=PATIENCE_S)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def test_replicas_and_haproxy_give_way_to_no_other_process(running: ServerProcess) -> None:
    answering = [process.pid for process in tree(running.process.pid) if process.role in (REPLICA, HAPROXY)]
    assert len(answering) >= NUM_REPLICAS + 1
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in answering} == {os.getpriority(os.PRIO_PROCESS, 0)}


def test_a_client_may_send_a_photo_in_one_go(running: ServerProcess) -> None:
    initial_window_size = 4
    assert http2_settings(int(running.address.rpartition(":")[2]))[initial_window_size] == UPLOAD_BYTES


@pytest.mark.parametrize("method", ["Embed", "EmbedStream", "Info"])
def test_a_malformed_message_is_the_callers_error(running: ServerProcess, method: str) -> None:
    code, words = ended(running.address, f"{SERVICE}/{method}", b"\xff\xff\xff")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words.startswith("message: is not a valid elastic.v1.") and not INTERNALS.search(words)


@pytest.mark.parametrize("method", ["Check", "List", "Watch"])
def test_health_refuses_a_malformed_message_too(running: ServerProcess, method: str) -> None:
    code, words = ended(running.address, f"{HEALTH}/{method}", b"\xff\xff\xff")
    assert code is grpc.StatusCode.INVALID_ARGUMENT and not INTERNALS.search(words)


def test_a_stream_with_a_malformed_message_does_not_end_well(running: ServerProcess, png: bytes) -> None:
    good = pb.EmbedStreamRequest(id=1, request=pb.EmbedRequest(inputs=[pb.Input(image=png)])).SerializeToString()
    code, _ = ended(running.address, f"{SERVICE}/EmbedStream", good, b"\xff", good)
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_random_mutations_break_nothing_and_see_nothing_of_the_inside(running: ServerProcess, png: bytes) -> None:
    before = replicas(running.process.pid)
    answers = asyncio.run(send_mutated(running.address, 400, 0, examples([png])))
    assert answers.codes.total() == 400 and not answers.leaks
    assert not answers.codes.keys() & {"INTERNAL", "UNKNOWN", "UNAVAILABLE"}
    assert answers.codes["INVALID_ARGUMENT"] > 100 and answers.codes["OK"] > 0
    assert replicas(running.process.pid) == before


def test_what_is_no_http2_is_cut_off_and_disturbs_nobody(running: ServerProcess, png: bytes) -> None:
    async def send_all() -> list[float | None]:
        return await asyncio.gather(
            *(closed_after_s("127.0.0.1", port, sent, limit_s=PATIENCE_S) for sent in GARBAGE.values())
        )

    port = int(running.address.rpartition(":")[2])
    closed = asyncio.run(send_all())
    assert None not in closed
    assert embed(running.address, png).slo_met


def test_half_open_and_slow_connections_are_closed_while_others_are_served(running: ServerProcess, png: bytes) -> None:
    """A stream that is used goes on for longer than any of them may last."""

    async def hold_and_serve() -> tuple[list[float | None], list[float]]:
        async def held() -> list[float | None]:
            kinds = [kind for kind in HALF_OPEN.values() for _ in range(25)]
            found = await asyncio.gather(*(closed_after_s("127.0.0.1", port, *kind) for kind in kinds))
            return list(found)

        async def inputs(holding: asyncio.Task[list[float | None]]) -> AsyncIterator[bytes]:
            while not holding.done():
                yield png
                await asyncio.sleep(0.5)

        async with AsyncClient(running.address) as client:
            holding = asyncio.create_task(held())
            answers = client.embed_stream(inputs(holding), latency_slo_ms=RELAXED_MS)
            served = [answer.total_ms async for _, answer in answers if isinstance(answer, Embedding)]
            return await holding, served

    port = int(running.address.rpartition(":")[2])
    began_s = time.monotonic()
    closed, served = asyncio.run(hold_and_serve())
    assert None not in closed
    assert time.monotonic() - began_s > SILENCE_S and len(served) > SILENCE_S


CLIENT_WITH_ANOTHER_CLOCK = textwrap.dedent("""
    import sys, time, types
    import elastic.messages
    from elastic.client import Client

    # Not `time.time` itself: grpc counts a time-out with it and ends it by a clock of its own.
    elastic.messages.time = types.SimpleNamespace(time=lambda: time.time() + float(sys.argv[2]))

    with Client(sys.argv[1]) as client:
        answers = [client.embed(texts=["a cat"], latency_slo_ms=5000)[0] for _ in range(5)]
    print(sum(answer.slo_met and answer.slack_ms <= 5000 for answer in answers))
""")


@pytest.mark.parametrize("offset_s", [-3600, 3600])
def test_a_client_whose_clock_is_an_hour_off_is_served_inside_its_budget(running: ServerProcess, offset_s: int) -> None:
    command = [sys.executable, "-c", CLIENT_WITH_ANOTHER_CLOCK, running.address, str(offset_s)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout.strip() == "5", done.stderr


CLIENT_WITHOUT_END = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from elastic.client import AsyncClient

    async def call_on(client, image, is_first):
        while True:
            await client.embed(images=[image] * 32, latency_slo_ms=60000)
            if is_first:
                print("answered", flush=True)

    async def main():
        image = Path(sys.argv[2]).read_bytes()
        async with AsyncClient(sys.argv[1]) as client:
            await asyncio.gather(*(call_on(client, image, number == 0) for number in range(16)))

    asyncio.run(main())
""")


def test_what_a_killed_client_had_asked_is_dropped_and_others_are_served(
    running: ServerProcess, png: bytes, metrics_port: int, tmp_path: Path
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(png)
    before = snapshot(metrics_port)
    command = [sys.executable, "-c", CLIENT_WITHOUT_END, running.address, str(image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"answered\n"
        process.kill()
    assert embed(running.address, png).slo_met
    give_up_s = time.monotonic() + PATIENCE_S
    while True:
        seen = Interval(before, snapshot(metrics_port))
        num_dropped = seen.by("outcome", "elastic_requests_total").get("cancelled", 0)
        if num_dropped and not seen.gauge("elastic_waiting_inputs"):
            break
        assert time.monotonic() < give_up_s, (num_dropped, seen.gauge("elastic_waiting_inputs"))
        time.sleep(0.2)


def test_a_killed_replica_fails_no_call_and_is_replaced(running: ServerProcess, png: bytes, metrics_port: int) -> None:
    with Callers(running.address, png) as callers:
        victim, survivor = replicas(running.process.pid)
        os.kill(victim, signal.SIGKILL)
        while victim in replicas(running.process.pid):
            time.sleep(0.05)
        killed, give_up_s = snapshot(metrics_port), time.monotonic() + 2 * PATIENCE_S
        while sum(growth > 0 for growth in num_met(killed, snapshot(metrics_port)).values()) < NUM_REPLICAS:
            assert time.monotonic() < give_up_s, "only one answers"
            time.sleep(0.2)
    assert not callers.failures
    assert survivor in replicas(running.process.pid)


def num_met(earlier: Snapshot, later: Snapshot) -> dict[str, float]:
    """Requests that each replica has answered in time."""
    return Interval(earlier, later).by("replica", "elastic_requests_total", outcome="met")
