"""What is asked of a server, and what became of every request: a `Load` goes in, `Samples` come out.

Two kinds of load. Open: requests are sent at given times, whether or not earlier ones were answered, as users do.
Closed: each of some workers waits for its answer before it asks again, so a slow server is asked less; good for
finding a capacity, useless for judging deadlines.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int, Shaped

from elastic.channel import Tls
from elastic.client import GRACE_MS
from elastic.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Requests of one input each, to be sent to one server.

    Request number k embeds `contents[k % len(contents)]`.
    """

    address: str
    """`host:port`."""
    contents: Sequence[bytes | str]
    """Encoded image files (bytes) and texts."""
    slo_ms: Float[np.ndarray, " request"]
    """Objective of every request; under a closed load it is repeated as often as needed."""
    at_ms: Float[np.ndarray, " request"] | None = None
    """When each request is to be sent, ascending, from the beginning; left out, the load is closed."""
    concurrency: int = 0
    """Workers of a closed load."""
    duration_ms: float = 0.0
    """How long a closed load asks, and what rates of an open one are counted over; 0 there: until the last request."""
    connections: int = 1
    """Channels, each with a TCP connection of its own; requests take turns."""
    embed_dim: int | None = None
    """Width of the embeddings; left out, the full one."""
    api_key: str | None = None
    """Of a server that asks for one; left out, that of `ELASTIC_API_KEY`."""
    tls: Tls | None = None
    """Left out, the connection is not encrypted."""
    grace_ms: float = GRACE_MS
    """How long after its deadline an answer is still waited for."""
    absolute_deadlines: bool = True
    """Send each request's absolute deadline, which counts from its intended time; needs synchronised clocks."""

    def __post_init__(self) -> None:
        for name in ("contents", "slo_ms"):
            if len(getattr(self, name)) == 0:
                raise ConfigError(name, (), "must not be empty")
        if not (self.slo_ms > 0).all() or self.grace_ms < 0:
            raise ConfigError("slo_ms", float(self.slo_ms.min()), "must be positive, and grace_ms not negative")
        if self.connections < 1:
            raise ConfigError("connections", self.connections, "must be at least 1")
        if self.at_ms is None and (self.concurrency < 1 or self.duration_ms <= 0):
            raise ConfigError("concurrency", self.concurrency, "a closed load needs workers and a duration")
        if self.at_ms is not None and (
            self.concurrency or len(self.at_ms) != len(self.slo_ms) or (np.diff(self.at_ms, prepend=0.0) < 0).any()
        ):
            raise ConfigError("at_ms", len(self.at_ms), "must ascend from 0, one per objective, without `concurrency`")
        if self.span_ms <= 0:
            raise ConfigError("duration_ms", self.duration_ms, "must be positive where no request comes after 0 ms")

    @property
    def span_ms(self) -> float:
        """The time over which requests are sent."""
        return max(self.duration_ms, 0.0 if self.at_ms is None else float(self.at_ms[-1]))


class Outcome(StrEnum):
    """How a request ended. Only an answer can meet an objective."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """The server said at once, or before its turn, that it would be late: overloaded, or infeasible."""
    EXPIRED = "expired"
    """The server said that the deadline had passed."""
    UNANSWERED = "unanswered"
    """Nothing came before the deadline and the grace after it."""
    FAILED = "failed"
    """Anything else: no connection, a request that is wrong, an error inside the server."""


@dataclass(slots=True)
class Sample:
    """One request. Milliseconds count from the beginning of the load; NaN, zero and "" are for what is not known."""

    number: int
    slo_ms: float
    intended_ms: float
    """When it should have been sent, which everything is counted from."""
    sent_ms: float = np.nan
    done_ms: float = np.nan
    """When its answer, refusal or error had come."""
    outcome: str = Outcome.UNANSWERED
    error: str = ""
    """Class of the server's error, or the gRPC status when it named none."""
    modality: str = ""
    granularity: str = ""
    """Name of the submodel, or its text form if it has none."""
    quality: float = np.nan
    total_ms: float = np.nan
    """From its arrival at the server to the reply, as the server says; so are all below."""
    preprocess_ms: float = np.nan
    queue_ms: float = np.nan
    compute_ms: float = np.nan
    predicted_ms: float = np.nan
    """What the server expected `compute_ms` to be."""
    batch_size: int = 0
    slack_ms: float = np.nan
    slo_met: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """All requests of a load as columns, in the order in which they were to be sent; see `Sample` for each."""

    number: Int[np.ndarray, " request"]
    slo_ms: Float[np.ndarray, " request"]
    intended_ms: Float[np.ndarray, " request"]
    sent_ms: Float[np.ndarray, " request"]
    done_ms: Float[np.ndarray, " request"]
    outcome: Shaped[np.ndarray, " request"]
    error: Shaped[np.ndarray, " request"]
    modality: Shaped[np.ndarray, " request"]
    granularity: Shaped[np.ndarray, " request"]
    quality: Float[np.ndarray, " request"]
    total_ms: Float[np.ndarray, " request"]
    preprocess_ms: Float[np.ndarray, " request"]
    queue_ms: Float[np.ndarray, " request"]
    compute_ms: Float[np.ndarray, " request"]
    predicted_ms: Float[np.ndarray, " request"]
    batch_size: Int[np.ndarray, " request"]
    slack_ms: Float[np.ndarray, " request"]
    slo_met: Bool[np.ndarray, " request"]
    begin_ms: float = 0.0
    """The requests here are those intended from here on,"""
    end_ms: float
    """up to here."""
    messages: Mapping[str, str] = field(default_factory=dict)
    """By `error`, the words that came with the first of its kind."""
    cpu_share: float = float("nan")
    """Processor time of the sending process over the time it sent, in cores: near 1, it could send no faster."""

    @classmethod
    def of(
        cls, rows: Iterable[Sample], end_ms: float, messages: Mapping[str, str], cpu_share: float = float("nan")
    ) -> "Samples":
        """The rows as columns."""
        ordered = sorted(rows, key=lambda row: (row.intended_ms, row.number))
        columns: dict[str, Any] = {
            name: np.array([getattr(row, name) for row in ordered], kind) for name, kind in _COLUMNS.items()
        }
        return cls(**columns, end_ms=end_ms, messages=messages, cpu_share=cpu_share)

    def __len__(self) -> int:
        return len(self.number)

    @property
    def duration_ms(self) -> float:
        """The time over which these requests were to be sent."""
        return self.end_ms - self.begin_ms

    @property
    def latency_ms(self) -> Float[np.ndarray, " request"]:
        """From the intended time to whatever came, an answer or not."""
        return self.done_ms - self.intended_ms

    @property
    def lag_ms(self) -> Float[np.ndarray, " request"]:
        """How late the generator itself was; it is part of the latency."""
        return self.sent_ms - self.intended_ms

    @property
    def answered(self) -> Bool[np.ndarray, " request"]:
        """Whether an embedding came, late or not."""
        return self.outcome == Outcome.ANSWERED

    @property
    def met(self) -> Bool[np.ndarray, " request"]:
        """Answered within its objective, counted here from the intended time; `slo_met` is the server's view."""
        return self.answered & (self.latency_ms <= self.slo_ms)

    def between(self, begin_ms: float, end_ms: float) -> "Samples":
        """Those intended from `begin_ms` up to `end_ms`, both included; used to leave a warm-up out."""
        inside = (self.intended_ms >= begin_ms) & (self.intended_ms <= end_ms)
        return self.where(inside, begin_ms, end_ms)

    def where(self, chosen: Bool[np.ndarray, " request"], begin_ms: float, end_ms: float) -> "Samples":
        """The chosen ones, of a span of time."""
        columns: dict[str, Any] = {name: getattr(self, name)[chosen] for name in _COLUMNS}
        return replace(self, **columns, begin_ms=begin_ms, end_ms=end_ms)

    def save(self, path: Path) -> None:
        """Write a Parquet file with a row per request."""
        about = {name: getattr(self, name) for name in _SCALARS}
        table = pa.table({name: getattr(self, name) for name in _COLUMNS})
        pq.write_table(table.replace_schema_metadata({_ABOUT: json.dumps(about)}), path)

    @classmethod
    def load(cls, path: Path) -> "Samples":
        """Read what `save` wrote.

        Raises:
            DataError: not such a file.
        """
        try:
            table = pq.read_table(path)
            about = json.loads((table.schema.metadata or {})[_ABOUT.encode()])
            columns: dict[str, Any] = {name: table[name].to_numpy().astype(kind) for name, kind in _COLUMNS.items()}
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            advice = "name a samples.parquet of `elastic bench serve`"
            raise DataError(str(path), f"holds no samples of a load ({error})", advice) from error
        return cls(**columns, **about)


_ABOUT = "elastic.bench"
_SCALARS = ("begin_ms", "end_ms", "messages", "cpu_share")
_KINDS = {int: np.int64, float: np.float64, bool: np.bool_, str: np.str_}
_COLUMNS = {one.name: _KINDS[one.type] for one in fields(Sample) if isinstance(one.type, type)}
