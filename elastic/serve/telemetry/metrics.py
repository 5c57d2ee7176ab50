"""Prometheus metrics of one replica, by Prometheus' conventions: base units (seconds), `_total` for counters.

What a caller is told in one answer (queue, compute, slack, quality), summed over all of them. Every series carries
the label `replica`, Serve's rank: whoever takes a dead replica's rank counts on where it stopped, so that a counter
never falls. `exporter.py` shows all replicas of a server at one URL. No ray: a test brings a registry of its own.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from math import nan
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from elastic.profile.tables import Modality
from elastic.serve.batching import Level
from elastic.serve.engine import RanBatch
from elastic.serve.observer import OUTCOMES, Observer, Outcome

WINDOW_S = 60
"""Over which attainment is taken."""

SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SLACK_S = (
    -10.0,
    -1.0,
    -0.1,
    -0.05,
    -0.02,
    -0.01,
    -0.005,
    -0.002,
    0.0,
    0.002,
    0.005,
    0.01,
    0.02,
    0.05,
    0.1,
    0.5,
    1.0,
    10.0,
)
RATIOS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0, 5.0, 10.0)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)


class Metrics(Observer):
    """Counts what a replica does, in a registry.

    Everything but the gauges is counted as it happens; `sample` sets the gauges and wants to be called every second.
    """

    def __init__(
        self, registry: CollectorRegistry, replica: str = "0", clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._replica = replica
        self._window = Window(clock_s)
        self._make_request_metrics(registry)
        self._make_batch_metrics(registry)
        self._make_gauges(registry)
        self._started.set(time.time())
        self.sample(0)

    def _make_request_metrics(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, ["replica"], registry=registry, buckets=buckets).labels(self._replica)

        def counters(name: str, text: str, label: str, values: Sequence[str]) -> dict[str, Counter]:
            # All at once, so that a rate is 0, and not missing, until the first one.
            counter = Counter(name, text, ["replica", label], registry=registry)
            return {value: counter.labels(self._replica, value) for value in values}

        kinds = get_args(Modality)
        self._requests = counters("elastic_requests", "Requests by how they ended", "outcome", OUTCOMES)
        self._inputs = counters("elastic_inputs", "Inputs of all requests that could be read", "modality", kinds)
        self._served = counters("elastic_served_inputs", "Inputs answered, in time or late", "modality", kinds)
        self._quality = counters(
            "elastic_served_quality", "Sum of the measured quality (recall@1) of inputs answered", "modality", kinds
        )
        self._total = histogram(
            "elastic_request_duration_seconds", "From the arrival of an answered request to its answer", SECONDS
        )
        self._preprocess = histogram(
            "elastic_preprocess_duration_seconds", "Decoding or tokenizing of an answered request", SECONDS
        )
        self._queue = histogram(
            "elastic_queue_duration_seconds", "Longest wait for the model among an answered request's inputs", SECONDS
        )
        self._slack = histogram(
            "elastic_slack_seconds", "What was left of an answered request's budget; negative when late", SLACK_S
        )

    def _make_batch_metrics(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, ["replica"], registry=registry, buckets=buckets).labels(self._replica)

        labels = ["replica", "modality", "granularity"]
        self._submodels = Counter(
            "elastic_submodel_inputs", "Inputs computed, by the submodel that computed them", labels, registry=registry
        )
        self._submodel_quality = Gauge(
            "elastic_submodel_quality_ratio",
            "Measured quality (recall@1) of a submodel at full width, once it has run",
            labels,
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._levels: dict[tuple[Modality, str], Level] = {}
        self._compute = histogram("elastic_compute_duration_seconds", "Model time of a batch", SECONDS)
        self._ratio = histogram("elastic_prediction_ratio", "Model time of a batch over its prediction", RATIOS)
        self._size = histogram("elastic_batch_size", "Inputs of a batch", SIZES)

    def _make_gauges(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            # "live": of several processes only those that still run are shown.
            family = Gauge(name, text, ["replica"], registry=registry, multiprocess_mode="livemostrecent")
            return family.labels(self._replica)

        self._waiting = gauge("elastic_waiting_inputs", "Inputs that wait for the model or are being decoded for it")
        self._attainment = gauge(
            "elastic_slo_attainment_ratio",
            "Share met of the last minute's requests that the server could have met; NaN without any",
        )
        self._started = gauge("elastic_replica_start_time_seconds", "When the replica was started, since 1970")

    def batch_ran(self, batch: RanBatch) -> None:
        """Count a batch."""
        works = batch.run.works
        submodel = (works[0].modality, batch.level.name)
        self._submodels.labels(self._replica, *submodel).inc(len(works))
        if self._levels.get(submodel) is not batch.level:  # a new model has new levels
            self._levels[submodel] = batch.level
            self._submodel_quality.labels(self._replica, *submodel).set(batch.level.quality[max(batch.level.quality)])
        self._compute.observe(batch.compute_ms / 1000)
        self._ratio.observe(batch.compute_ms / batch.run.predicted_ms)
        self._size.observe(len(works))

    def request_finished(self, outcome: Outcome) -> None:
        """Count a request."""
        self._requests[outcome.name].inc()
        if outcome.counts:
            self._window.add(outcome.met)
        if outcome.request is not None:
            modalities = outcome.request.modalities
            for modality in set(modalities):
                self._inputs[modality].inc(modalities.count(modality))
        if outcome.error is None:
            self._answered(outcome)

    def _answered(self, outcome: Outcome) -> None:
        computed = outcome.computed
        self._total.observe(outcome.total_ms / 1000)
        self._slack.observe(outcome.slack_ms / 1000)
        self._preprocess.observe(computed[0].preprocess_ms / 1000)
        self._queue.observe(max(item.queue_ms for item in computed) / 1000)
        for modality in {item.modality for item in computed}:
            qualities = [item.quality for item in computed if item.modality == modality]
            self._served[modality].inc(len(qualities))
            self._quality[modality].inc(sum(qualities))

    def sample(self, num_waiting: int) -> None:
        """Set the gauges to what holds now."""
        self._waiting.set(num_waiting)
        self._attainment.set(self._window.attainment())

    async def keep_sampling(self, num_waiting: Callable[[], int], period_s: float = 1.0) -> None:
        """Sample for ever."""
        while True:
            self.sample(num_waiting())
            await asyncio.sleep(period_s)


class Window:
    """The share of requests that were met over the last `WINDOW_S` seconds, to the second."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._seconds: dict[int, tuple[int, int]] = {}

    def add(self, met: bool) -> None:
        """Count a request that was met, or was not."""
        second = int(self._clock_s())
        num_met, num_all = self._seconds.get(second, (0, 0))
        self._seconds[second] = (num_met + met, num_all + 1)

    def attainment(self) -> float:
        """NaN if there was none."""
        oldest = int(self._clock_s()) - WINDOW_S
        self._seconds = {second: counts for second, counts in self._seconds.items() if second > oldest}
        num_met = sum(counts[0] for counts in self._seconds.values())
        num_all = sum(counts[1] for counts in self._seconds.values())
        return num_met / num_all if num_all else nan
