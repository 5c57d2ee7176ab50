"""The benchmark of far clients: its relay, its images and its table."""

import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from PIL import Image
from rich.console import Console

from benchmarks.far_clients import Row, far_away, image_of, table


@pytest.fixture
def echo() -> Iterator[int]:
    """The port of a server that sends back what it is sent, to one client."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(ConnectionError):  # the relay is killed
                while data := connection.recv(2**16):
                    connection.sendall(data)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def test_a_relay_holds_all_bytes_back_and_loses_none(echo: int) -> None:
    sent = os.urandom(300_000)
    with far_away(echo, 200.0) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        begin_s = time.monotonic()
        client.sendall(sent)
        found = client.recv(1000)
        assert time.monotonic() - begin_s >= 0.2
        while len(found) < len(sent):
            found += client.recv(2**16)
    assert found == sent


def test_no_distance_is_no_relay() -> None:
    with far_away(12345, 0.0) as port:
        assert port == 12345


@pytest.mark.parametrize("kib", [20, 400])
def test_images_are_about_as_large_as_they_are_to_be(kib: int) -> None:
    encoded = image_of(kib)
    assert len(encoded) == pytest.approx(1024 * kib, rel=0.1)
    assert Image.open(io.BytesIO(encoded)).format == "JPEG"


def test_windows_stand_side_by_side() -> None:
    rows = [Row(window, 50.0, 100.0, way_ms) for window, way_ms in ((64, 104.0), (1024, 52.0))]
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(table(rows))
    text = console.export_text()
    assert "window of 1024 KiB" in text
    assert any(line.split()[1:8:2] == ["50", "100", "104.0", "52.0"] for line in text.splitlines() if "104.0" in line)
