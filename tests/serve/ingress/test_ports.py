"""Ports of a server that no other server on the machine can share by accident."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import pytest

from elastic.errors import ConfigError
from elastic.serve.ingress import ports
from elastic.serve.ingress.ports import SINGLE_PORTS, WINDOW_SIZE, WINDOWS, check_port, claimed_window, free_port


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> range:
    """Only three windows, so that tests can use them up."""
    chosen = range(WINDOWS.start, WINDOWS.start + 300, 100)
    monkeypatch.setattr(ports, "WINDOWS", chosen)
    return chosen


def test_a_taken_port_is_named_with_the_flag_that_changes_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"serve\.http_port={port}.*--http-port"):
            check_port("127.0.0.1", port, "http_port")
    check_port("127.0.0.1", port, "http_port")


def test_a_free_port_can_be_bound_and_is_in_no_window() -> None:
    port = free_port("127.0.0.1")
    assert port in SINGLE_PORTS
    assert port < WINDOWS.start
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def test_windows_do_not_touch_each_other_nor_the_ports_of_the_kernel() -> None:
    assert WINDOWS.step > WINDOW_SIZE
    assert WINDOWS[-1] + WINDOWS.step <= 32_768


def test_servers_that_run_together_have_windows_of_their_own_and_give_them_back(few: range) -> None:
    with ExitStack() as servers:
        windows = [servers.enter_context(claimed_window()) for _ in few]
        assert {window.start for window in windows} == set(few)
        with pytest.raises(ConfigError, match="100 neighbouring ports"), claimed_window():
            pass
    with claimed_window() as window:
        assert window.start in few


@pytest.fixture
def sharer(few: range) -> Iterator[int]:
    """A gRPC server on the first port of a window that lets others share it, as Ray's replicas do."""
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", "0")])
    port = server.add_insecure_port(f"[::]:{few[0]}")
    server.start()
    yield port
    server.stop(None)


def test_a_window_with_a_port_that_somebody_would_share_is_left_alone(few: range, sharer: int) -> None:
    with ExitStack() as servers:
        windows = [servers.enter_context(claimed_window()) for _ in few[1:]]
        assert sharer not in {window.start for window in windows}
        with pytest.raises(ConfigError), claimed_window():
            pass
