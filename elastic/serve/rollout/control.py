"""How `elastic deploy` reaches a running `elastic serve`: a unix socket that only its user can open.

One line of JSON in, one out: `{"ok": ...}`, or `{"error": {"type": ..., "fields": [...]}}` from which the caller
rebuilds the error. A socket file instead of a port: nothing of this is open to the network.
"""

import json
import logging
import os
import socket
import socketserver
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from elastic import errors
from elastic.errors import ConfigError, ElasticError, ServerUnavailable

logger = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], dict[str, Any]]


def socket_path(port: int) -> Path:
    """Where the server at a port of this machine listens, for this user.

    Raises:
        ConfigError: the folder belongs to somebody else.
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "elastic" if base else Path(tempfile.gettempdir()) / f"elastic-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        raise ConfigError("XDG_RUNTIME_DIR", str(folder), "must be a folder that only you can open; remove it")
    return folder / f"{port}.sock"


@contextmanager
def listening(path: Path, handle: Handler) -> Iterator[None]:
    """Answer messages with `handle`, each in a thread, until the block ends.

    Raises:
        ConfigError: another server listens there.
    """
    if _answers(path):
        raise ConfigError("serve.port", int(path.stem), "another server on this machine has it; choose another --port")
    path.unlink(missing_ok=True)  # left by a server that was killed
    server = _Server(str(path), _Connection)
    path.chmod(0o600)  # nobody else could reach it before either: the folder is the user's alone
    server.answer = handle
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="control", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        path.unlink(missing_ok=True)


def call(path: Path, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Send one message to the server and return its answer.

    Raises:
        ServerUnavailable: no server of this user listens there, or it ended before it answered.
        ElasticError: whatever the server raised.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            line = connection.makefile("rb").readline()
        except OSError as error:
            advice = "run this as the user who started `elastic serve`, on the same machine"
            raise ServerUnavailable(f"port {path.stem}", f"no server to control ({error})", advice) from error
    if not line:
        raise ServerUnavailable(f"port {path.stem}", "the server ended before it answered", "start it again")
    answer = json.loads(line)
    if "error" in answer:
        raise getattr(errors, answer["error"]["type"])(*answer["error"]["fields"])
    return answer["ok"]


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    # A deploy that runs while the server ends must not keep it from ending.
    block_on_close = False
    answer: Handler


class _Connection(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, _Server)
        line = self.rfile.readline()
        if not line:  # somebody looked whether a server is here
            return
        try:
            answer: dict[str, Any] = {"ok": self.server.answer(json.loads(line))}
        except ElasticError as error:
            answer = {"error": {"type": type(error).__name__, "fields": error.args}}
        except Exception as error:
            # The edge of the process: the caller must hear that it failed, and the log why.
            logger.exception("a message to the control socket failed")
            answer = {"error": {"type": "ElasticError", "fields": [f"{type(error).__name__}: {error}"]}}
        try:
            self.wfile.write(json.dumps(answer).encode() + b"\n")
        except BrokenPipeError:
            logger.warning("nobody waited for the answer to a message on the control socket")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
