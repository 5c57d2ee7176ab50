"""What listens to a replica, by its settings and its environment: metrics, the log of requests, traces."""

import os
from typing import TYPE_CHECKING

from elastic.serve.config import METRICS_DIR_VARIABLE, ServeConfig
from elastic.serve.observer import Observer
from elastic.serve.telemetry.logs import RequestLog
from elastic.serve.telemetry.tracing import Traces, find_exporter, tracer

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from elastic.serve.telemetry.metrics import Metrics


def replica_registry() -> "CollectorRegistry | None":
    """Where this process counts, if its server shows metrics; written to where `exporter.py` reads it."""
    directory = os.environ.get(METRICS_DIR_VARIABLE)
    if directory is None:
        return None
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
    # Not at the top: prometheus_client looks at that variable once, when it is first imported.
    from prometheus_client import CollectorRegistry, values

    assert values.ValueClass._multiprocess, "prometheus_client was imported before"
    return CollectorRegistry()


def replica_metrics(replica: str) -> "Metrics | None":
    """What counts in this process, if its server shows metrics."""
    registry = replica_registry()
    if registry is None:
        return None
    from elastic.serve.telemetry.metrics import Metrics

    return Metrics(registry, replica)


def replica_records(config: ServeConfig, replica: str) -> list[Observer]:
    """What records single requests: a log if the settings name a folder for it, traces if the environment asks.

    Raises:
        ConfigError: the environment asks for an exporter of traces that is not installed.
    """
    found: list[Observer] = []
    if config.log_requests is not None:
        found.append(RequestLog(config.log_requests / f"requests-{replica}.jsonl", config.log_sample))
    exporter = find_exporter(os.environ)
    if exporter is not None:
        found.append(Traces(tracer(exporter())))
    return found
