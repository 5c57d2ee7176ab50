"""TLS in front of the server: a HAProxy of our own that decrypts, and passes the bytes on to Ray's on loopback.

Ray's HAProxy speaks in the clear only, and its configuration cannot be extended. This one is the same binary
and looks into nothing, so streams, flow control and trailers are those of the inner connection. A
renewed certificate is taken by a new process on the same port, while connections of the old one go on.
"""

import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elastic.errors import ConfigError, ServerUnavailable
from elastic.serve.config import ServeConfig
from elastic.serve.ingress.certificates import check_authorities, check_pair
from elastic.serve.ingress.haproxy import REQUEST_HEAD_S

logger = logging.getLogger(__name__)

WATCH_EVERY_S = 5.0
"""How often certificates are looked at, and that the process lives."""
READY_TIMEOUT_S = 20.0

# A replaced process's connections have a minute to end. TLS 1.2 with forward secrecy and authenticated encryption only,
# and every suite of TLS 1.3. In `mode tcp` nothing is decoded; `alpn h2` is what gRPC asks for. `timeout client` bounds
# the handshake, `timeout tunnel` all that follows; the inner HAProxy closes what is idle long before that.
CONFIG = """
global
    maxconn 4096
    nbthread {num_threads}
    hard-stop-after 60s
    ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets
    ssl-default-bind-ciphers ECDHE+AESGCM:ECDHE+CHACHA20
defaults
    mode tcp
    timeout connect 5s
    timeout client {handshake_s}s
    timeout server 1h
    timeout tunnel 1h
    timeout client-fin 10s
frontend grpc
    bind {host}:{port} ssl crt {pem} alpn h2{verify}
    default_backend grpc
backend grpc
    server ray 127.0.0.1:{inner_port}
frontend http
    bind {host}:{http_port} ssl crt {pem} alpn http/1.1{verify}
    default_backend http
backend http
    server ray 127.0.0.1:{inner_http_port}
"""


def check_files(config: ServeConfig) -> None:
    """Whether the certificates of the settings can be used now, if there are any.

    Raises:
        ConfigError: they cannot.
    """
    if config.tls_cert is not None and config.tls_key is not None:
        check_pair(config.tls_cert, config.tls_key)
    if config.client_ca is not None:
        check_authorities(config.client_ca)


@contextmanager
def terminating(config: ServeConfig, inner: ServeConfig, scratch: Path, haproxy: str) -> Iterator["Terminator"]:
    """TLS on the addresses of `config` until the block ends, in front of those of `inner` on loopback, by `haproxy`.

    Raises:
        ConfigError: the certificates cannot be used.
        ServerUnavailable: it did not start.
    """
    terminator = Terminator(config, inner, scratch, haproxy)
    try:
        terminator.start()
        yield terminator
    finally:
        terminator.stop()


class Terminator:
    """The process, and a thread that starts it again should it end, and reloads it when certificates change."""

    def __init__(self, config: ServeConfig, inner: ServeConfig, scratch: Path, haproxy: str) -> None:
        self._config, self._haproxy, self._log = config, haproxy, scratch / "tls.log"
        self._file = scratch / "tls.cfg"
        self._file.write_text(haproxy_config(config, inner, scratch), encoding="ascii")
        self._seen = self._signature()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="tls", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._replaced: list[subprocess.Popen[bytes]] = []

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Return once the port is open.

        Raises:
            ServerUnavailable: it ended, or took too long.
        """
        self._process = self._spawn()
        self._wait_until_open()
        self._watcher.start()

    def stop_accepting(self) -> None:
        """Close the ports; what is connected goes on."""
        self._stop_watching()
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """End it, connections and all."""
        self._stop_watching()
        for process in (*self._replaced, *([self._process] if self._process else [])):
            process.terminate()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _stop_watching(self) -> None:
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()

    def _spawn(self, *flags: str) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            # A session of its own, so that Ctrl-C in the terminal reaches only the server, which ends this in turn.
            return subprocess.Popen(
                [self._haproxy, "-db", "-f", str(self._file), *flags],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_until_open(self) -> None:
        assert self._process is not None
        address = (self._config.host, self._config.port)
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s and self._process.poll() is None:
            try:
                socket.create_connection(address, timeout=1.0).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        problem = f"TLS did not start: {self._log.read_text(encoding='utf-8', errors='replace').strip()}"
        raise ServerUnavailable(f"{address[0]}:{address[1]}", problem, "check the certificates")

    def _watch(self) -> None:
        while not self._ended.wait(WATCH_EVERY_S):
            assert self._process is not None
            if self._process.poll() is not None:
                logger.error("the TLS process ended with code %s, starting it again", self._process.returncode)
                self._process = self._spawn()
            elif self._signature() != self._seen:
                self._seen = self._signature()
                self._reload()

    def _reload(self) -> None:
        try:
            check_files(self._config)
        except ConfigError as error:
            logger.error("THE NEW CERTIFICATE CANNOT BE USED, the old one stays: %s", error)
            return
        assert self._process is not None
        # The new one binds beside the old one, then tells it to accept no more.
        self._replaced = [process for process in self._replaced if process.poll() is None] + [self._process]
        self._process = self._spawn("-sf", str(self._process.pid))
        logger.warning("read the certificates anew")

    def _signature(self) -> tuple[tuple[int, int] | None, ...]:
        files = (self._config.tls_cert, self._config.tls_key, self._config.client_ca)
        return tuple(_stamp(path) for path in files if path is not None)


def haproxy_config(config: ServeConfig, inner: ServeConfig, scratch: Path) -> str:
    """The text of its configuration; links in `scratch` give certificate and key the names that HAProxy looks for."""
    assert config.tls_cert is not None and config.tls_key is not None, "a Terminator is made for TLS only"
    pem = scratch / "server.pem"
    pem.symlink_to(config.tls_cert.absolute())
    pem.with_name("server.pem.key").symlink_to(config.tls_key.absolute())
    verify = ""
    if config.client_ca is not None:
        authorities = scratch / "client_ca.pem"
        authorities.symlink_to(config.client_ca.absolute())
        verify = f" ca-file {authorities} verify required"
    return CONFIG.format(
        host=f"[{config.host}]" if ":" in config.host else config.host,
        port=config.port,
        http_port=config.port_of_http,
        inner_port=inner.port,
        inner_http_port=inner.port_of_http,
        pem=pem,
        verify=verify,
        handshake_s=REQUEST_HEAD_S,
        num_threads=min(4, os.cpu_count() or 1),
    )


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
