import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from elastic.errors import CheckpointError, ConfigError, ElasticError, ServerUnavailable
from elastic.serve.rollout.control import call, listening, socket_path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return socket_path(9000)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if request["verb"] == "refuse":
        raise CheckpointError("runs/a", "is damaged", "restore it")
    if request["verb"] == "break":
        raise KeyError("a bug")
    return {"got": request}


@pytest.fixture
def server(path: Path) -> Iterator[Path]:
    with listening(path, answer):
        yield path


def test_a_message_is_answered(server: Path) -> None:
    assert call(server, {"verb": "deploy", "run": "a b"}, 10.0) == {"got": {"verb": "deploy", "run": "a b"}}


def test_an_error_arrives_as_itself(server: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        call(server, {"verb": "refuse"}, 10.0)
    assert raised.value.args == ("runs/a", "is damaged", "restore it")


def test_a_bug_is_told_and_logged_and_the_server_goes_on(server: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ElasticError, match="KeyError"):
        call(server, {"verb": "break"}, 10.0)
    assert "a bug" in caplog.text
    assert call(server, {"verb": "again"}, 10.0)["got"]


def test_messages_are_answered_while_another_is_worked_on(path: Path) -> None:
    begun, release = threading.Event(), threading.Event()

    def slow(request: dict[str, Any]) -> dict[str, Any]:
        if request["verb"] == "slow":
            begun.set()
            assert release.wait(10.0)
        return {}

    with listening(path, slow):
        caller = threading.Thread(target=call, args=(path, {"verb": "slow"}, 10.0))
        caller.start()
        assert begun.wait(10.0)
        assert call(path, {"verb": "quick"}, 10.0) == {}
        release.set()
        caller.join()


def test_only_its_user_can_open_it(server: Path) -> None:
    assert stat.S_IMODE(server.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.parent.stat().st_mode) == 0o700


def test_a_folder_that_others_can_open_is_not_trusted(path: Path) -> None:
    path.parent.chmod(0o755)
    with pytest.raises(ConfigError, match="only you can open"):
        socket_path(9000)


def test_without_a_runtime_folder_it_lies_below_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert socket_path(9123) == tmp_path / f"elastic-{os.getuid()}" / "9123.sock"


def test_no_server_is_said_plainly(path: Path) -> None:
    with pytest.raises(ServerUnavailable, match="port 9000: no server to control"):
        call(path, {"verb": "deploy"}, 10.0)


def test_the_socket_is_gone_with_the_server(path: Path) -> None:
    with listening(path, answer):
        assert path.exists()
    assert not path.exists()


def test_what_a_killed_server_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listening(path, answer):
        assert call(path, {"verb": "x"}, 10.0)


def test_a_living_server_is_not_replaced(server: Path) -> None:
    with pytest.raises(ConfigError, match="choose another --port"), listening(server, answer):
        pass
    assert call(server, {"verb": "x"}, 10.0)
