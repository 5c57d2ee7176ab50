"""Logs as JSON lines: one for each request that is sampled, and one for everything that the package itself logs.

Never what a request holds: no text, no image, no embedding, no key.
"""

import json
import logging
import os
import random
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from math import isnan
from pathlib import Path

from elastic.errors import ConfigError
from elastic.serve.observer import ERROR, Observer, Outcome

MAX_FILE_BYTES, NUM_OLD_FILES = 64 * 2**20, 3

SENT = {"request_id": "request_id", "x-request-id": "request_id", "traceparent": "traceparent"}
"""Metadata that a caller may send to find its request again, and what a line calls them."""


class JsonLines(logging.Formatter):
    """A record as one JSON object: time, level, logger, message, what `extra={"fields": ...}` adds, traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; times are UTC."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def log_as_json() -> None:
    """Write what the package logs to standard error, which Ray keeps in the process's file of its log directory."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    package = logging.getLogger("elastic")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO)


def make_folder(folder: Path) -> None:
    """Make the folder of the requests' logs.

    Raises:
        ConfigError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("serve.log_requests", str(folder), f"cannot be made ({error.strerror})") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError("serve.log_requests", str(folder), "cannot be written to")


class RequestLog(Observer):
    """Writes one line for each sampled request, and for every one that met a fault of the server."""

    def __init__(self, path: Path, share: float = 1.0, draw: Callable[[], float] = random.random) -> None:
        self._share, self._draw = share, draw
        handler = RotatingFileHandler(path, maxBytes=MAX_FILE_BYTES, backupCount=NUM_OLD_FILES, encoding="utf-8")
        handler.setFormatter(JsonLines())
        # A logger of its own, which nobody else can reach or reconfigure.
        self._logger = logging.Logger("elastic.requests")
        self._logger.addHandler(handler)

    def request_finished(self, outcome: Outcome) -> None:
        """Write its line."""
        self.write(outcome.name, lambda: fields(outcome))

    def write(self, outcome: str, told: Callable[[], dict[str, object]]) -> None:
        """Write a line for a request that ended so, if it is sampled or met a fault."""
        if outcome == ERROR or self._draw() < self._share:
            self._logger.info(outcome, extra={"fields": told()})

    def close(self) -> None:
        """Close the file."""
        for handler in self._logger.handlers:
            handler.close()


def fields(outcome: Outcome) -> dict[str, object]:
    """What is told of a request; what is not known of it is left out."""
    found = sender_fields(outcome.metadata, outcome.key)
    found = {"outcome": outcome.name, "total_ms": round(outcome.total_ms, 3)} | found
    if not isnan(outcome.slack_ms):
        found["slack_ms"] = round(outcome.slack_ms, 3)
    if outcome.request is not None:
        found["slo_ms"] = outcome.request.slo.latency_ms
        found["inputs"] = {kind: outcome.request.modalities.count(kind) for kind in set(outcome.request.modalities)}
    if outcome.computed:
        last = outcome.last
        found["preprocess_ms"] = round(last.preprocess_ms, 3)
        found["queue_ms"] = round(last.queue_ms, 3)
        found["compute_ms"] = round(last.compute_ms, 3)
        found["predicted_ms"] = round(last.predicted_ms, 3)
        found["batch_size"] = last.batch_size
        found["submodels"] = sorted({item.level.name for item in outcome.computed})
        found["embed_dim"] = last.embed_dim
        found["quality"] = sum(item.quality for item in outcome.computed) / len(outcome.computed)
    if outcome.error is not None:
        found["error"] = type(outcome.error).__name__
    return found


def sender_fields(metadata: Mapping[str, str], key: str | None) -> dict[str, object]:
    """What is told of who sent a request: the names it gave it, and the name of its key."""
    found: dict[str, object] = {name: metadata[sent] for sent, name in SENT.items() if sent in metadata}
    return found if key is None else found | {"key": key}
