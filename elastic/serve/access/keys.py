"""API keys: a file of their hashes, and the list that a running server keeps of them.

The file is JSON and private to its owner (mode 0600). It never holds a key, only each key's SHA-256:

    {"keys": [{"name": "mobile", "sha256": "9f86...", "created": "2026-11-26", "rate": 20.0, "burst": 20}]}
"""

import fcntl
import hashlib
import hmac
import json
import logging
import math
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from elastic.errors import ConfigError

logger = logging.getLogger(__name__)

KEY_BYTES = 32
KEY_PREFIX = "elastic_"
"""Lets people, and the scanners that look for secrets in repositories, see what a string is."""
RELOAD_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """What is kept of one key."""

    name: str
    """Who it was given to; what logs say."""
    sha256: str
    """`fingerprint` of the key."""
    created: str
    """ISO date."""
    rate: float | None = None
    """Requests per second in the long run; None: any number."""
    burst: int | None = None
    """Requests that may come at once after a pause; with a rate only."""
    concurrency: int | None = None
    """Requests at work at once; None: any number."""

    def __post_init__(self) -> None:
        for field in ("name", "sha256", "created"):
            if not isinstance(getattr(self, field), str):
                raise ConfigError(f"keys.{field}", "...", "must be a text")
        if not self.name or not self.name.isprintable():
            raise ConfigError("keys.name", self.name, "must be a printable word")
        if len(self.sha256) != 64 or set(self.sha256) - set("0123456789abcdef"):
            # Not shown: it may be a key that was put here by mistake.
            raise ConfigError("keys.sha256", "...", f"is not a SHA-256 in hexadecimal (key {self.name!r})")
        for field in ("rate", "burst", "concurrency"):
            value = getattr(self, field)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"keys.{field}", value, f"must be positive (key {self.name!r})")
        for field in ("burst", "concurrency"):
            if not isinstance(getattr(self, field), int | None):
                raise ConfigError(f"keys.{field}", getattr(self, field), f"must be a whole number (key {self.name!r})")
        if (self.rate is None) is not (self.burst is None):
            raise ConfigError("keys.burst", self.burst, f"goes with a rate, which is {self.rate} (key {self.name!r})")


def fingerprint(secret: str) -> str:
    """SHA-256 of a key, in hexadecimal.

    A slow, salted hash is for secrets that people choose, which can be guessed. Nobody guesses 256 random bits, however
    fast the hash, no two keys are equal, and every call is checked, so a slow one would only cost latency.
    """
    return hashlib.sha256(secret.encode()).hexdigest()


def create_key(
    name: str, *, rate: float | None = None, burst: int | None = None, concurrency: int | None = None
) -> tuple[ApiKey, str]:
    """A new entry and the key itself, which is kept nowhere; `burst` is one second's worth of `rate` by default."""
    secret = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    if rate is not None and burst is None:
        burst = max(1, round(rate)) if math.isfinite(rate) else 1
    entry = ApiKey(
        name=name,
        sha256=fingerprint(secret),
        created=datetime.now(UTC).date().isoformat(),
        rate=rate,
        burst=burst,
        concurrency=concurrency,
    )
    return entry, secret


def load_keys(path: Path) -> tuple[ApiKey, ...]:
    """The entries of a key file.

    Raises:
        ConfigError: it is missing, readable by others, or not a key file.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read()
    except OSError as error:
        rule = f"cannot be read ({error.strerror}); `elastic keys add NAME --file {path}` makes one"
        raise ConfigError("api_keys", str(path), rule) from error
    if mode & 0o077:
        raise ConfigError("api_keys", str(path), f"others may read it (mode {mode:04o}); run: chmod 600 {path}")
    try:
        entries = tuple(ApiKey(**entry) for entry in json.loads(content)["keys"])
    except ConfigError as error:
        raise ConfigError("api_keys", str(path), f"is damaged: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError("api_keys", str(path), f"is not a key file ({type(error).__name__})") from error
    for field in ("name", "sha256"):
        if len({getattr(entry, field) for entry in entries}) < len(entries):
            raise ConfigError("api_keys", str(path), f"holds two keys with the same {field}")
    return entries


@contextmanager
def editing(path: Path) -> Iterator[list[ApiKey]]:
    """The entries to change; they are written when the block ends, all or none. Other editors wait.

    Raises:
        ConfigError: the file cannot be used, or the folder cannot be written.
    """
    path = path.resolve()  # a link stays a link
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError("file", str(path), f"its folder cannot be opened ({error.strerror})") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # of the folder, because the file is replaced
        entries = list(load_keys(path)) if path.exists() else []
        yield entries
        _write(path, entries)
    finally:
        os.close(folder)


def _write(path: Path, entries: Sequence[ApiKey]) -> None:
    kept = [{name: value for name, value in asdict(entry).items() if value is not None} for entry in entries]
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:  # 0600
            json.dump({"keys": kept}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)
    except OSError as error:
        raise ConfigError("file", str(path), f"cannot be written ({error.strerror})") from error


class KeyRing:
    """The entries of a key file, always the newest good ones: the file may change while this is used.

    It is looked at no more than once per `RELOAD_EVERY_S`. A file that has become bad changes nothing but the log:
    the keys read before stay good, so that a slip of the pen does not shut everybody out.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._seen = _signature(path)  # before reading: a change in between is seen as one
        self._entries = load_keys(path)
        self._looked_s = clock()

    def find(self, secret: str) -> ApiKey | None:
        """The entry of a key, if it is a key.

        Takes equally long for all that are none: what is compared are hashes, over the whole list, each in constant
        time.
        """
        self._reload_if_changed()
        asked, found = fingerprint(secret), None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, asked):
                found = entry
        return found

    def _reload_if_changed(self) -> None:
        now_s = self._clock()
        if now_s - self._looked_s < RELOAD_EVERY_S:
            return
        self._looked_s = now_s
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._entries = load_keys(self._path)
        except ConfigError as error:
            logger.error("THE KEY FILE IS BROKEN, the %d keys read before stay: %s", len(self._entries), error)
        else:
            logger.warning("read the key file anew: %d keys", len(self._entries))


def _signature(path: Path) -> tuple[int, ...] | None:
    """Changes when the file does; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
