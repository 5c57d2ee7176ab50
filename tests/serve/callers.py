"""Load that notices every failure."""

import threading
import time

from elastic.client import Client
from elastic.retry import NUM_ATTEMPTS

RELAXED_MS = 60_000.0
PAUSE_S = 0.05
"""Between two calls of a thread, so that a small machine gets other things done, such as starting a replica."""


class Callers:
    """Threads that call one after the other until told to stop, each until its first failure."""

    NUM = 4

    def __init__(self, address: str, png: bytes, num_attempts: int = NUM_ATTEMPTS, pause_s: float = PAUSE_S) -> None:
        self.versions: set[str] = set()
        self.num_answered, self.num_mixed = 0, 0
        self.failures: list[Exception] = []
        self._address, self._png = address, png
        self._num_attempts, self._pause_s = num_attempts, pause_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call_on) for _ in range(self.NUM)]

    def __enter__(self) -> "Callers":
        for thread in self._threads:
            thread.start()
        self.wait_for_more()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        """Wait until each has failed, or was told to stop."""
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, count: int = 20) -> None:
        """Return after this many more answers."""
        enough = self.num_answered + count
        while self.num_answered < enough and not self.failures:
            time.sleep(0.01)

    def _call_on(self) -> None:
        with Client(self._address, num_attempts=self._num_attempts) as client:
            while not self._stop.wait(self._pause_s):
                try:
                    found = client.embed(images=[self._png] * 2, texts=["a cat"], latency_slo_ms=RELAXED_MS)
                except Exception as error:
                    self.failures.append(error)
                    return
                versions = {embedding.model_version for embedding in found}
                self.num_mixed += len(versions) > 1
                self.versions |= versions
                self.num_answered += 1
