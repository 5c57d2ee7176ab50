"""Starts and stops every server as a process of its own, and counts the CPU time of its whole tree of processes."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.server_cost.peers.infinity_folder import infinity_folder
from benchmarks.server_cost.workload import Model
from benchmarks.serving.processes import cpu_s
from elastic.serve.ingress.ports import WINDOWS, free_port

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
READY_TIMEOUT_S, ROUTED_S = 180.0, 10.0
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True, slots=True)
class Server:
    """One that answers."""

    port: int
    pid: int
    direct_port: int | None = None
    """Of the replica behind HAProxy, where there is one."""

    def cpu_s(self) -> float:
        """CPU seconds of the process and everything below it, so far."""
        return cpu_s(self.pid)


@contextmanager
def elastic_serve(model: Model, run: Path, scratch: Path) -> Iterator[Server]:
    """`elastic serve`, with Ray and HAProxy below it."""
    port, http_port = free_port(HOST), free_port(HOST)
    command = [sys.executable, "-m", "elastic", "serve", str(run), "--port", str(port), "--http-port", str(http_port)]
    command += ["--profile", "never", "--max-batch-size", str(model.max_batch_size)]
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    with _running("elastic", command, environment, scratch, _printed("ready at")) as pid:
        yield Server(port, pid, _replica_port(port))


@contextmanager
def bare_grpc(model: Model, run: Path, scratch: Path) -> Iterator[Server]:
    """The 60 lines of `peers/bare_grpc.py`."""
    port = free_port(HOST)
    command = _module(sys.executable, "bare_grpc", run, port, model)
    with _running("bare_grpc", command, {}, scratch, _printed("ready")) as pid:
        yield Server(port, pid)


@contextmanager
def litserve(model: Model, run: Path, scratch: Path, venv: Path) -> Iterator[Server]:
    """LitServe out of the peers' environment."""
    port = free_port(HOST)
    command = _module(str(venv / "bin" / "python"), "lit", run, port, model)
    with _running("litserve", command, {}, scratch, _answers(port)) as pid:
        yield Server(port, pid)


@contextmanager
def infinity(model: Model, run: Path, scratch: Path, venv: Path) -> Iterator[Server]:
    """infinity_emb out of the peers' environment, serving a folder that `infinity_folder` wrote."""
    port = free_port(HOST)
    folder = infinity_folder(run, scratch / "infinity")
    command = [str(venv / "bin" / "infinity_emb"), "v2", "--model-id", str(folder), "--served-model-name", "elastic"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--engine", "torch"]
    command += ["--batch-size", str(model.max_batch_size), "--no-compile", "--no-bettertransformer"]
    command += ["--no-model-warmup", "--trust-remote-code", "--log-level", "warning"]
    environment = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    environment |= {"HF_HOME": str(scratch / "huggingface")}
    with _running("infinity", command, environment, scratch, _answers(port)) as pid:
        yield Server(port, pid)


def _replica_port(port: int) -> int:
    """Where HAProxy sends what comes in at `port`, from its configuration."""
    give_up_s = time.monotonic() + ROUTED_S
    while True:
        # Ray writes it anew while the server starts: ours may be empty for a moment, and know no replica at first,
        # while all calls take the way through Serve's own proxy.
        texts = [path.read_text() for path in Path(tempfile.gettempdir()).glob("elastic-*/**/haproxy.cfg")]
        ours = [text for text in texts if re.search(rf"bind \S+:{port}\b", text)]
        spoken_to = {int(port) for text in ours for port in re.findall(r"server \S+ \S+:(\d+) proto h2 ", text)}
        replicas = [found for found in spoken_to if found >= WINDOWS.start]  # the other is that proxy
        if replicas:
            return replicas[0]
        assert time.monotonic() < give_up_s, f"HAProxy knows no replica: {ours}"
        time.sleep(0.1)


def _module(python: str, name: str, run: Path, port: int, model: Model) -> list[str]:
    module = f"benchmarks.server_cost.peers.{name}"
    return [python, "-m", module, str(run), str(port), str(model.max_batch_size)]


Ready = Callable[[Path], bool]
"""Whether a server with this log answers."""


def _printed(words: str) -> Ready:
    return lambda log: words in log.read_text()


def _answers(port: int) -> Ready:
    def ready(log: Path) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    return ready


@contextmanager
def _running(
    name: str, command: Sequence[str], environment: dict[str, str], scratch: Path, ready: Ready
) -> Iterator[int]:
    """A process from the moment it answers until the block ends; its log is `scratch/NAME.log`."""
    log = scratch / f"{name}.log"
    variables = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=variables, cwd=ROOT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not ready(log):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{' '.join(command)} did not become ready:\n{log.read_text()[-4000:]}")
                time.sleep(0.2)
            yield process.pid
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, then end what is left of its session."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
