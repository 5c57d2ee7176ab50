"""One URL with the metrics of all replicas: they write into memory-mapped files, whoever started them reads those.

This is prometheus_client's multi-process mode. Ray's metrics agent was no alternative: it reports every ten seconds,
puts `ray_` before every name and the result among hundreds of metrics of its own, and rebuilds a histogram from the
middles of its buckets, so that its sums are wrong.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from elastic.errors import ConfigError


@contextmanager
def exporting(directory: Path, host: str, port: int) -> Iterator[str]:
    """The URL that shows what replicas write into `directory`, until the block ends.

    Raises:
        ConfigError: the port cannot be bound.
    """
    registry = CollectorRegistry()
    registry.register(Replicas(directory))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        rule = f"cannot be bound on {host} ({error.strerror}); choose another with --metrics-port"
        raise ConfigError("serve.metrics_port", port, rule) from error
    try:
        yield f"http://{host}:{port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Replicas(Collector):
    """What all replicas have counted, those that ended included, and the gauges of those that live."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = MultiProcessCollector(None, str(directory))

    def collect(self) -> Iterable[Metric]:
        """Read the files as they are now."""
        for path in self._directory.glob("gauge_live*.db"):
            pid = int(path.stem.rpartition("_")[2])
            if not is_running(pid):
                mark_process_dead(pid, str(self._directory))
        return self._files.collect()


def is_running(pid: int) -> bool:
    """Whether a process of this user exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
