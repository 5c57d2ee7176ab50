import socket
import threading
from collections.abc import Iterator
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from prometheus_client import CollectorRegistry, start_http_server

from elastic import cli
from elastic.commands import top
from elastic.commands.top import Top, metrics_url, read
from elastic.errors import ConfigError, ServerUnavailable
from elastic.serve.telemetry.metrics import Metrics
from elastic.serve.telemetry.snapshot import Snapshot


@pytest.fixture
def address() -> Iterator[str]:
    """A server that has shown metrics of one replica since it started."""
    registry = CollectorRegistry()
    Metrics(registry)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


class Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stranger() -> Iterator[str]:
    """Something that answers with a page of its own."""

    def page(environ: object, start_response: object) -> list[bytes]:
        start_response("200 OK", [("content-type", "text/html")])  # type: ignore[operator]
        return [b"<html>hello</html>"]

    server = make_server("127.0.0.1", 0, page, handler_class=Silent)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_stands_for_its_metrics_page() -> None:
    assert metrics_url("127.0.0.1:9090") == "http://127.0.0.1:9090/metrics"
    assert metrics_url("https://host/x") == "https://host/x"


def test_once_prints_one_screen_and_ends(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", address, "--once"]) == 0
    assert "attainment" in capsys.readouterr().out


def test_nobody_there_is_an_error_that_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:  # but not listening
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        assert cli.main(["top", address, "--once"]) == cli.EXIT_USER_ERROR
    message = capsys.readouterr().err
    assert address in message and "elastic serve --metrics-port" in message


def test_a_page_that_is_no_metrics_is_an_error(stranger: str) -> None:
    with pytest.raises(ServerUnavailable, match="no metrics"):
        read(stranger)


def test_a_window_must_last() -> None:
    with pytest.raises(ConfigError, match="window_s"):
        Top(window_s=0.0).run()


def test_the_screen_follows_the_server_and_looks_back_over_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    spans: list[float] = []
    replica = ("elastic_replica_start_time_seconds", (("replica", "0"),))

    def reading(url: str) -> Snapshot:
        now_s = next(clock)
        if now_s == 30:
            raise KeyboardInterrupt
        return Snapshot(float(now_s), {replica: 0.0})

    def rendering(earlier: Snapshot, later: Snapshot, title: str) -> str:
        spans.append(later.at_s - earlier.at_s)
        return title

    monkeypatch.setattr(top, "read", reading)
    monkeypatch.setattr(top, "render", rendering)
    monkeypatch.setattr(top.time, "sleep", lambda seconds: None)
    with pytest.raises(KeyboardInterrupt):
        Top(window_s=10.0).run()
    assert spans == [*map(float, range(10)), *[10.0] * 20]
