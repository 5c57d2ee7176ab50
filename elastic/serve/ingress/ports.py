"""Ports of one server, apart from those of every other on this machine."""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from elastic.errors import ConfigError

SINGLE_PORTS = range(20_000, 25_000)
WINDOWS = range(25_000, 32_700, 100)
"""Where windows begin. The kernel gives outgoing connections numbers from 32768 on by default, Ray's workers ask for
some below 20000, and many of both are taken while Ray starts."""
WINDOW_SIZE = 99
"""Ports of a window that are used; one more is what claims it."""


def check_port(host: str, port: int, name: str) -> None:
    """Whether a port that a user chose can be had.

    Raises:
        ConfigError: it is taken, or not ours to take.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            flag = name.replace("_", "-")
            rule = f"cannot be bound on {host} ({error.strerror}); choose another with --{flag}"
            raise ConfigError(f"serve.{name}", port, rule) from error


def free_port(host: str) -> int:
    """A port that nothing listens on, and that no outgoing connection will be given before HAProxy binds it.

    Raises:
        ConfigError: there is none.
    """
    for port in random.sample(SINGLE_PORTS, 100):
        if _is_free(host, port):
            return port
    raise ConfigError("serve.host", host, "no port from 20000 to 24999 can be bound on it")


@contextmanager
def claimed_window() -> Iterator[range]:
    """Ports for replicas that no other server takes until the block ends.

    A replica's gRPC server binds with SO_REUSEPORT, whatever Ray asks for (the option is a text, which gRPC ignores).
    Where two servers used the same numbers, the second would bind without an error, and the kernel would deal the
    calls of both out to the replicas of both. So each server claims a window by a port that cannot be shared.

    Raises:
        ConfigError: every window is claimed.
    """
    for base in random.sample(WINDOWS, len(WINDOWS)):
        window = range(base, base + WINDOW_SIZE)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as claim:
            try:
                claim.bind(("0.0.0.0", window.stop))
            except OSError:
                continue
            if all(_is_free("0.0.0.0", port) for port in window):
                yield window
                return
    raise ConfigError("serve", "ports", "no 100 neighbouring ports from 25000 to 32699 are free for the replicas")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
