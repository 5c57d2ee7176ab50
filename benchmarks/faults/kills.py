"""Replicas that are killed again and again, while callers go on with the client as it comes."""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from benchmarks.serving.processes import HAPROXY, replicas, tree
from benchmarks.serving.server import Running
from elastic.client import Client
from elastic.errors import ElasticError

NUM_CALLERS = 4
SLO_MS = 10_000.0
SETTLED_S = 2.0
"""Between a replacement and the next kill."""
PATIENCE_S = 120.0


class Callers:
    """Threads that call one after the other."""

    def __init__(self, address: str, images: Sequence[bytes]) -> None:
        self.answered_s: list[float] = []
        self.failures: list[str] = []
        self._address, self._images = address, images
        self._ended = threading.Event()

    @contextmanager
    def calling(self) -> Iterator["Callers"]:
        """Until the block ends."""
        threads = [threading.Thread(target=self._call_on, args=(number,)) for number in range(NUM_CALLERS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def longest_gap_s(self, since_s: float) -> float:
        """The longest time without any answer from then on."""
        times = [since_s, *(at_s for at_s in sorted(self.answered_s) if at_s > since_s)]
        return max((later - earlier for earlier, later in pairwise(times)), default=0.0)

    def _call_on(self, number: int) -> None:
        with Client(self._address) as client:
            while not self._ended.is_set():
                try:
                    client.embed(images=[self._images[number]], latency_slo_ms=SLO_MS)
                except ElasticError as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                else:
                    self.answered_s.append(time.monotonic())


def kill_repeatedly(server: Running, images: Sequence[bytes], num_replicas: int, num_kills: int) -> dict[str, object]:
    """Kill one of the replicas, wait for its successor, and again; the last kill is of all at once."""
    rng = random.Random(0)
    gaps_s, back_s, failed = [], [], [0]
    _wait_for_others(server.pid, set(), num_replicas, num_replicas)
    with Callers(server.address, images).calling() as callers:
        for kill in range(num_kills):
            time.sleep(SETTLED_S)
            running, known = replicas(server.pid), known_replicas(server.pid)
            victims = running if kill == num_kills - 1 else [rng.choice(running)]
            killed_s = time.monotonic()
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
            back_s.append(_wait_for_others(server.pid, known, len(victims), num_replicas) - killed_s)
            gaps_s.append(callers.longest_gap_s(killed_s))
            failed.append(len(callers.failures))
    return {
        "kills": num_kills,
        "replicas": num_replicas,
        "calls": len(callers.answered_s) + len(callers.failures),
        "failed": {"one": failed[-2], "all": len(callers.failures) - failed[-2]},
        "failures": sorted(set(callers.failures))[:5],
        "longest_gap_s": {"one": max(gaps_s[:-1]), "all": gaps_s[-1]},
        "replaced_after_s": {"one": max(back_s[:-1]), "all": back_s[-1]},
    }


def known_replicas(pid: int) -> set[str]:
    """Names of the replicas that HAProxy sends calls to, from its configuration."""
    newest = [process for process in tree(pid) if process.role == HAPROXY][-1]
    text = Path(newest.command[newest.command.index("-f") + 1]).read_text(encoding="utf-8")
    return set(re.findall(r"server (SERVE_REPLICA_\S+) \S+ proto h2", text))


def _wait_for_others(pid: int, known: set[str], num_others: int, num_replicas: int) -> float:
    """When there are as many as there should be, and so many of them were not known."""
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        now = known_replicas(pid)
        if len(now) == num_replicas and len(now - known) == num_others:
            return time.monotonic()
        time.sleep(0.05)
    raise RuntimeError(f"there were no {num_others} new replicas after {PATIENCE_S:g} s")
