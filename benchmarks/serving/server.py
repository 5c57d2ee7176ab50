"""`elastic serve` as a process of its own, from the moment it answers until the block ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from elastic.serve.ingress.ports import free_port

START_S = 180.0


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    host: str
    port: int
    http_port: int
    pid: int
    """Of the process that started all others."""

    @property
    def address(self) -> str:
        """`host:port` of the gRPC service."""
        return f"{self.host}:{self.port}"


@contextmanager
def elastic_serve(run: Path, *flags: str) -> Iterator[Running]:
    """A server for a run that has been profiled, on ports of its own, with further flags.

    SIGTERM interrupts the block as Ctrl-C does, so that no server is left behind; for the main thread only.
    """
    host = "127.0.0.1"
    port, http_port = free_port(host), free_port(host)
    command = [sys.executable, "-m", "elastic", "serve", str(run), "--profile", "never", *flags]
    command += ["--port", str(port), "--http-port", str(http_port)]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"}
            )
            try:
                deadline_s = time.monotonic() + START_S
                while "ready at" not in log.read_text():
                    if process.poll() is not None or time.monotonic() > deadline_s:
                        raise RuntimeError(f"the server did not start: {log.read_text()}")
                    time.sleep(0.2)
                yield Running(host, port, http_port, process.pid)
            finally:
                process.terminate()
                process.wait(timeout=90)
                signal.signal(signal.SIGTERM, before)
