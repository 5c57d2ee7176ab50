import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import ray  # noqa: F401 - a test needs it to be imported
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from elastic.cli import EXIT_INTERRUPTED
from elastic.errors import CheckpointError, ConfigError, ServerUnavailable
from elastic.serve.app import Server, environment, reporting_no_ingress, serving, wait_until_serving
from elastic.serve.config import METRICS_DIR_VARIABLE, ServeConfig

WINDOW = range(25_000, 25_099)


@pytest.fixture
def health() -> Iterator[tuple[str, HealthServicer]]:
    """A bare gRPC server with the standard health service only."""
    servicer = HealthServicer()
    server = grpc.server(ThreadPoolExecutor(2))
    add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None)


def test_a_server_that_says_serving_is_ready(health: tuple[str, HealthServicer]) -> None:
    wait_until_serving(health[0], timeout_s=30.0)


def test_a_server_that_is_not_healthy_is_not_ready(health: tuple[str, HealthServicer]) -> None:
    address, servicer = health
    servicer.set("", HealthCheckResponse.NOT_SERVING)
    with pytest.raises(ServerUnavailable, match=r"not serving after 0\.3 s"):
        wait_until_serving(address, timeout_s=0.3)


def test_a_taken_port_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(ConfigError, match="choose another with --port"),
            serving(ServeConfig(run=tmp_path, port=port)),
        ):
            pass


def test_keys_or_certificates_that_cannot_be_used_are_an_error_before_anything_starts(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    for fields in ({"api_keys": nothing}, {"tls_cert": nothing, "tls_key": nothing}):
        with (
            pytest.raises(ConfigError, match="cannot be read"),
            serving(ServeConfig(run=tmp_path, port=free_port(), **fields)),  # type: ignore[arg-type]
        ):
            pass


def test_ray_takes_nothing_from_whoever_does_not_know_a_secret_of_this_server(tmp_path: Path) -> None:
    first, second = (environment(ServeConfig(run=tmp_path), tmp_path, WINDOW) for _ in range(2))
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_a_run_that_cannot_be_served_is_an_error_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError), serving(ServeConfig(run=tmp_path, port=free_port())):
        pass


def test_a_process_that_uses_ray_already_cannot_serve(tiny_run: Path) -> None:
    assert "ray" in sys.modules
    before = dict(os.environ)
    with (
        pytest.raises(ConfigError, match="a process of its own"),
        serving(ServeConfig(run=tiny_run, port=free_port())),
    ):
        pass
    assert dict(os.environ) == before


def test_ray_is_told_to_use_haproxy_and_the_message_limit_with_files_of_its_own(tmp_path: Path) -> None:
    variables = environment(ServeConfig(run=tmp_path, max_message_bytes=12_345), tmp_path, WINDOW)
    assert variables["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert variables["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] == "12345"
    paths = [value for name, value in variables.items() if name.endswith(("_LOC", "_PATH", "_BASE", "_FILE"))]
    assert len(paths) == 4
    assert all(path.startswith(str(tmp_path)) for path in paths)
    assert variables["RAY_SERVE_HAPROXY_METRICS_PORT"] != variables["RAY_SERVE_HAPROXY_STATS_PORT"]


def test_replicas_bind_inside_the_claimed_window_and_their_two_kinds_of_port_apart(tmp_path: Path) -> None:
    variables = environment(ServeConfig(run=tmp_path), tmp_path, WINDOW)
    first_grpc, last_grpc, first_http, last_http = (
        int(variables[f"RAY_SERVE_DIRECT_INGRESS_{end}_{kind}_PORT"])
        for kind in ("GRPC", "HTTP")
        for end in ("MIN", "MAX")
    )
    assert WINDOW.start == first_grpc < last_grpc < first_http < last_http < WINDOW.stop


def test_replicas_learn_where_to_count_only_if_metrics_are_shown(tmp_path: Path) -> None:
    shown = environment(ServeConfig(run=tmp_path, metrics_port=9_090), tmp_path, WINDOW)
    assert shown[METRICS_DIR_VARIABLE] == str(tmp_path / "metrics")
    assert METRICS_DIR_VARIABLE not in environment(ServeConfig(run=tmp_path), tmp_path, WINDOW)


@pytest.mark.ray
@pytest.mark.serve
@pytest.mark.slow
def test_a_server_told_to_end_while_it_starts_leaves_no_process_behind(tiny_run: Path, tmp_path: Path) -> None:
    flags = ["--port", str(free_port()), "--profile", "never"]
    command = [sys.executable, "-m", "elastic", "serve", str(tiny_run), *flags]
    log, mark = tmp_path / "log.txt", f"ELASTIC_TEST_MARK={uuid.uuid4()}"
    variables = os.environ | dict([mark.split("=")])
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
    try:
        while "haproxy" not in marked(mark).values():  # it runs before the replicas do
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=90) == EXIT_INTERRUPTED, log.read_text()
        give_up_s = time.monotonic() + 10
        while marked(mark) and time.monotonic() < give_up_s:
            time.sleep(0.1)
        assert not marked(mark)
    finally:
        for pid in marked(mark):
            os.kill(pid, signal.SIGKILL)


def marked(mark: str) -> dict[int, str]:
    """Names of the running processes that inherited a variable from the one that it was given to, by id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except (OSError, ValueError):  # it has ended
            continue
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_ingress_that_does_not_come_up_is_told_with_what_to_do(tmp_path: Path) -> None:
    server = Server(address="127.0.0.1:9000", http_address="127.0.0.1:9001", log_dir=tmp_path)
    problem = r"did not come up.*60s.*start it again.*logs are in"
    with pytest.raises(ServerUnavailable, match=problem) as raised, reporting_no_ingress(server):
        raise TimeoutError("Proxies not available after 60s.")
    assert str(tmp_path) in str(raised.value)
