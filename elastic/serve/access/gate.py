"""Who may call, and how much at once: checked in the replica, at every call and every message of a stream.

A replica's own port is open to other machines, as Ray gives it no choice of interface, so being behind the ingress
protects nothing.
"""

import ipaddress
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

from elastic.channel import AUTHORIZATION, KEY_ADVICE
from elastic.errors import Unauthenticated
from elastic.serve.access.keys import ApiKey, KeyRing
from elastic.serve.access.usage import Usage


@runtime_checkable
class Caller(Protocol):
    """What is known of whoever calls (gRPC's `ServicerContext`, or Ray Serve's in its place)."""

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        """What the client sent along."""
        ...

    def peer(self) -> str:
        """Where the connection comes from, as gRPC writes it (`ipv4:127.0.0.1:40000`)."""
        ...


class Gate:
    """Lets in callers that came through the ingress and, if there is a key ring, show a key that is inside its limits.

    Belongs to one event loop.
    """

    def __init__(self, ring: KeyRing | None = None, usage: Usage | None = None) -> None:
        self._ring, self._usage = ring, usage or Usage()

    @classmethod
    def of(cls, api_keys: Path | None, usage: Path | None = None) -> "Gate":
        """The gate of a server with this key file; None asks for no keys.

        Replicas that name the same file for `usage` hold a key to its limits together.

        Raises:
            ConfigError: as in `keys.load_keys`.
        """
        return cls() if api_keys is None else cls(KeyRing(api_keys), Usage(usage))

    @contextmanager
    def admit(self, caller: Caller | None) -> Iterator[str | None]:
        """One request, from here to the end of the block, under the name of its key, if it needs one.

        The caller None is this process.

        Raises:
            Unauthenticated: as in `check`.
            RateLimited: the key is above its rate or its number of requests at once.
        """
        key = self.check(caller)
        if key is None:
            yield None
            return
        with self._usage.count(key):
            yield key.name

    def check(self, caller: Caller | None) -> ApiKey | None:
        """The key of a caller that may call at all; nothing is counted.

        Raises:
            Unauthenticated: it came around the ingress, or without a key that is in the file now.
        """
        if caller is None:
            return None
        if not is_local(caller.peer()):
            raise Unauthenticated("this is an inner port of the server", "call the address that `elastic serve` named")
        return None if self._ring is None else _authenticate(self._ring, caller)


def is_local(peer: str) -> bool:
    """Whether a connection comes from this machine; what cannot be read does not."""
    kind, _, rest = peer.partition(":")
    return kind == "unix" or _is_loopback(rest.rpartition(":")[0].strip("[]"))


@lru_cache(maxsize=64)
def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _authenticate(ring: KeyRing, caller: Caller) -> ApiKey:
    shown = [value for name, value in caller.invocation_metadata() if name == AUTHORIZATION]
    scheme, _, secret = (shown[0] if shown else "").partition(" ")
    if scheme.lower() != "bearer" or not secret:
        raise Unauthenticated("no API key was sent", KEY_ADVICE)
    key = ring.find(secret)
    if key is None:
        raise Unauthenticated("the API key is not known here", KEY_ADVICE)
    return key
