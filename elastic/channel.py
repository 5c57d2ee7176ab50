"""How a client reaches a server: in the clear or over TLS, with an API key or without. Both clients open theirs here.

Needs grpc alone.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from elastic.errors import ConfigError

API_KEY_VARIABLE = "ELASTIC_API_KEY"
"""Names the API key of a client that is given none."""
AUTHORIZATION = "authorization"
"""Metadata of a call that carries its key, as `Bearer KEY`."""
KEY_ADVICE = "pass its API key (api_key=, --api-key) or set ELASTIC_API_KEY"
MAX_REPLY_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Tls:
    """What a client trusts, and what it shows of itself, all as PEM files."""

    ca: Path | None = None
    """Certificates of the authorities that may vouch for the server; by default those that grpc comes with."""
    cert: Path | None = None
    """This client's certificate and the chain to its authority, for a server that asks for one."""
    key: Path | None = None
    """The private key of `cert`."""
    server_name: str | None = None
    """Name that the server's certificate must carry, where it is not the one in the address."""

    def __post_init__(self) -> None:
        if (self.cert is None) is not (self.key is None):
            present, missing = ("tls.cert", "tls.key") if self.key is None else ("tls.key", "tls.cert")
            raise ConfigError(missing, None, f"is needed too, as {present} is given")

    def credentials(self) -> grpc.ChannelCredentials:
        """The same for grpc.

        Raises:
            ConfigError: a file cannot be read.
        """
        return grpc.ssl_channel_credentials(_read("ca", self.ca), _read("key", self.key), _read("cert", self.cert))

    def options(self) -> list[tuple[str, str]]:
        """Channel options that go with the credentials."""
        return [] if self.server_name is None else [("grpc.ssl_target_name_override", self.server_name)]


def open_channel(address: str, tls: Tls | None = None, *, own_connection: bool = False) -> grpc.Channel:
    """A channel to `host:port`; it connects on the first call.

    Channels of one process to one address share a connection unless told otherwise.

    Raises:
        ConfigError: a file of `tls` cannot be read.
    """
    options = _options(own_connection)
    if tls is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, tls.credentials(), [*options, *tls.options()])


def open_aio_channel(address: str, tls: Tls | None = None, *, own_connection: bool = False) -> grpc.aio.Channel:
    """The same for asyncio.

    Raises:
        ConfigError: a file of `tls` cannot be read.
    """
    options = _options(own_connection)
    if tls is None:
        return grpc.aio.insecure_channel(address, options)
    return grpc.aio.secure_channel(address, tls.credentials(), [*options, *tls.options()])


def key_metadata(api_key: str | None = None) -> list[tuple[str, str]]:
    """What every call sends along: the key, or that of `ELASTIC_API_KEY`; nothing where there is neither.

    Raises:
        ConfigError: it has characters that no key has, such as the line break of a file.
    """
    key = os.environ.get(API_KEY_VARIABLE, "") if api_key is None else api_key
    if not key:
        return []
    if not (key.isascii() and key.isprintable() and " " not in key):
        # The key itself must not get into a log.
        raise ConfigError("api_key", "...", "must be visible ASCII characters without spaces or line breaks")
    return [(AUTHORIZATION, f"Bearer {key}")]


def unavailable_advice(details: str) -> str:
    """What to do about a server that cannot be reached, going by what grpc says of it."""
    words = details.lower()
    if any(word in words for word in ("handshake", "verification", "certificate")):
        return "check the CA and the client certificate that you gave, and the name in the address"
    if any(word in words for word in ("socket closed", "reset by peer", "broken pipe", "unwrap failed")):
        return "if it serves TLS, give its CA and, where it asks for one, a client certificate"
    return "start a server with `elastic serve`, or name a running one's host:port"


def _options(own_connection: bool) -> Sequence[tuple[str, int]]:
    return [
        ("grpc.use_local_subchannel_pool", int(own_connection)),
        ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
        # A server that restarts is found again soon: grpc would wait a second after the first failure, and ever longer.
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]


def _read(field: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"tls.{field}", str(path), f"cannot be read ({error.strerror})") from error
