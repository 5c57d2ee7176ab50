"""What every key uses, counted together by all replicas of a server: they are on one machine and share a file.

It holds a record per key, its bucket of tokens. A request at work holds a lock on one of its key's places, which are
bytes far behind the records; the kernel frees what a killed process held, so nothing stays counted that has ended.
"""

import fcntl
import math
import os
import random
import struct
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from elastic.errors import RateLimited
from elastic.serve.access.keys import ApiKey

USAGE = "usage"
"""The file, in the folder of a server."""

CONCURRENCY_RETRY_MS = 50.0
"""Hint for a key with too many requests at work: when one will end is not known."""

RECORD = struct.Struct("<32sdd")
"""SHA-256 of a key, its tokens, and when they were counted, in seconds of the machine's monotonic clock."""
APPENDING = 2**40 - 1
"""The byte that is locked while a record is added."""
FIRST_PLACE, PLACES = 2**40, 2**20
"""Where the places of the first key begin, and how many every key has: more requests at once are not counted."""


class Usage:
    """The count of one process; those that name the same file count together, and one that names none counts alone.

    Locks belong to a process and a file, so a process opens the file once, and uses it from one thread.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        if path is None:
            self._file, name = tempfile.mkstemp(prefix="elastic-usage-")
            os.unlink(name)
        else:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        weakref.finalize(self, os.close, self._file)
        self._clock = clock
        self._indices: dict[str, int] = {}
        """Of the records, by SHA-256."""
        self._held: set[int] = set()
        """Places of this process's requests."""

    @contextmanager
    def count(self, key: ApiKey) -> Iterator[None]:
        """One request, at work until the end of the block.

        Raises:
            RateLimited: the key is above its rate or its number of requests at once.
        """
        if key.rate is None and key.concurrency is None:
            yield
            return
        index = self._index(key.sha256)
        place = self._take_place(key, index)
        try:
            self._take_token(key, index)
            yield
        finally:
            if place is not None:
                self._held.remove(place)
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def _take_place(self, key: ApiKey, index: int) -> int | None:
        if key.concurrency is None:
            return None
        first, count = FIRST_PLACE + index * PLACES, min(key.concurrency, PLACES)
        # From anywhere: in one order, all would try the places first that are taken first.
        begin = random.randrange(count)
        for number in range(begin, begin + count):
            place = first + number % count
            # A process is always given a lock that it has already.
            if place not in self._held and self._has_locked(place):
                self._held.add(place)
                return place
        raise RateLimited(f"key {key.name!r} has {key.concurrency} requests at work", CONCURRENCY_RETRY_MS)

    def _take_token(self, key: ApiKey, index: int) -> None:
        if key.rate is None or key.burst is None:
            return
        start = index * RECORD.size
        with self._locked(start, RECORD.size):
            digest, tokens, filled_s = RECORD.unpack(os.pread(self._file, RECORD.size, start))
            now_s = self._clock()
            tokens = min(float(key.burst), tokens + (now_s - filled_s) * key.rate)
            is_enough = tokens >= 1
            os.pwrite(self._file, RECORD.pack(digest, tokens - is_enough, now_s), start)
        if not is_enough:
            wait_ms = (1 - tokens) / key.rate * 1000
            raise RateLimited(f"key {key.name!r} is above its {key.rate:g} requests/s", wait_ms)

    def _index(self, sha256: str) -> int:
        """Of the key's record, which is made if it is not there: with a full bucket, however large that is."""
        if sha256 not in self._indices:
            with self._locked(APPENDING, 1):
                size = os.fstat(self._file).st_size
                digests = [digest.hex() for digest, _, _ in RECORD.iter_unpack(os.pread(self._file, size, 0))]
                if sha256 not in digests:
                    record = RECORD.pack(bytes.fromhex(sha256), math.inf, self._clock())
                    os.pwrite(self._file, record, size)
                    digests.append(sha256)
            self._indices = {digest: index for index, digest in enumerate(digests)}
        return self._indices[sha256]

    def _has_locked(self, place: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except BlockingIOError:
            return False
        return True

    @contextmanager
    def _locked(self, start: int, length: int) -> Iterator[None]:
        fcntl.lockf(self._file, fcntl.LOCK_EX, length, start)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, length, start)
