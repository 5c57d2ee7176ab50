"""What samples say: shares of all requests, never of the answered ones alone, unless the name says so."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from elastic.bench.load import Outcome, Samples
from elastic.simulate.trace import Traffic, describe

BUSY_SHARE = 0.9
"""Of a core that a generator uses, above which it may be what is slow."""
LAG_SHARE = 0.1
"""Of the tightest objective that a generator may be late by (its p99) without being part of the result."""


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Of a distribution in milliseconds; NaN where there is nothing."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Float[np.ndarray, " value"]) -> "Percentiles":
        """Linear between neighbours; NaN values are left out."""
        known = values[~np.isnan(values)]
        return cls(*(np.percentile(known, [50, 90, 99]).tolist() if len(known) else [float("nan")] * 3))


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """How some requests were served. Every request counts: whatever is not answered in time is not met."""

    requests: int
    attainment: float
    """Share answered within the objective, from the intended time."""
    goodput: float
    """Requests met per second."""
    throughput: float
    """Requests answered per second, late or not."""
    quality_met: float
    """Mean quality of what was met; NaN if nothing was."""
    quality_all: float
    """Mean quality over all requests, zero for those that were not met."""
    shares: Mapping[str, float]
    """Of all requests, by outcome."""
    latency_ms: Percentiles
    """Of the answered ones, late ones among them."""
    refusal_ms: Percentiles
    """Until a refusal came."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """What the server said of its answers, beside what the client saw."""

    queue_ms: Percentiles
    compute_ms: Percentiles
    preprocess_ms: Percentiles
    between_ms: Percentiles
    """What of its total is none of the three above: its event loop, the ways between threads, the reply."""
    total_ms: Percentiles
    outside_ms: Percentiles
    """What the client saw beyond the server's total: network, ingress, and the generator's own lag."""
    mean_batch: float
    attainment: float
    """Share of all requests that the server believes it met: it cannot know of the way back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """A whole load."""

    overall: Service
    by_slo: Mapping[float, Service]
    """By objective in milliseconds, ascending."""
    by_modality: Mapping[str, Service]
    """Images and texts, whose qualities are not of the same task."""
    submodels: Mapping[str, float]
    """Share of the answers by the submodel's name, most frequent first."""
    server: Server
    errors: Mapping[str, int]
    """Requests without an answer, by error."""
    traffic: Traffic
    """What was really sent, by intended times."""
    lag_ms: Percentiles
    """How late the generator sent."""
    cpu_share: float
    """Cores that the generator used."""

    @property
    def generator_problem(self) -> str:
        """Why the numbers say something about the generator rather than the server; empty if they do not."""
        tightest_ms = min(self.by_slo, default=np.inf)
        if self.lag_ms.p99 > LAG_SHARE * tightest_ms:
            late = f"one request in a hundred was sent at least {self.lag_ms.p99:.1f} ms late"
            return f"{late}, which counts as latency, at an objective of {tightest_ms:g} ms"
        if self.cpu_share > BUSY_SHARE:
            return f"it used {self.cpu_share:.0%} of a core, all that one thread can"
        return ""


def summarise(samples: Samples) -> Summary:
    """Sum up all requests that are in the samples; leave a warm-up out with `Samples.between` first."""
    answered = samples.answered
    granularities = Counter(samples.granularity[answered].tolist())
    return Summary(
        overall=_service(samples),
        by_slo=_services(samples, samples.slo_ms),
        by_modality=_services(samples, samples.modality),
        submodels={name: count / int(answered.sum()) for name, count in granularities.most_common()},
        server=_server(samples),
        errors=dict(Counter(samples.error[~answered].tolist()).most_common()),
        traffic=describe(samples.intended_ms - samples.begin_ms, samples.duration_ms),
        lag_ms=Percentiles.of(samples.lag_ms),
        cpu_share=samples.cpu_share,
    )


def _services(samples: Samples, key: np.ndarray) -> dict[Any, Service]:
    """Those of every value of a column, ascending."""
    span = (samples.begin_ms, samples.end_ms)
    return {value: _service(samples.where(key == value, *span)) for value in np.unique(key).tolist()}


def _service(samples: Samples) -> Service:
    met, answered, refused = samples.met, samples.answered, samples.outcome == Outcome.REFUSED
    count, seconds = len(samples), samples.duration_ms / 1000
    return Service(
        requests=count,
        attainment=_mean(met),
        goodput=float(met.sum()) / seconds,
        throughput=float(answered.sum()) / seconds,
        quality_met=_mean(samples.quality[met]),
        quality_all=_mean(np.where(met, samples.quality, 0.0)),
        shares={outcome.value: _mean(samples.outcome == outcome) for outcome in Outcome},
        latency_ms=Percentiles.of(samples.latency_ms[answered]),
        refusal_ms=Percentiles.of(samples.latency_ms[refused]),
    )


def _server(samples: Samples) -> Server:
    answered = samples.answered
    stages_ms = samples.preprocess_ms + samples.queue_ms + samples.compute_ms
    return Server(
        queue_ms=Percentiles.of(samples.queue_ms[answered]),
        compute_ms=Percentiles.of(samples.compute_ms[answered]),
        preprocess_ms=Percentiles.of(samples.preprocess_ms[answered]),
        between_ms=Percentiles.of((samples.total_ms - stages_ms)[answered]),
        total_ms=Percentiles.of(samples.total_ms[answered]),
        outside_ms=Percentiles.of((samples.latency_ms - samples.total_ms)[answered]),
        mean_batch=_mean(samples.batch_size[answered]),
        attainment=_mean(samples.slo_met),
    )


def _mean(values: np.ndarray) -> float:
    """NaN of nothing, without a warning."""
    return float(values.mean()) if len(values) else float("nan")
