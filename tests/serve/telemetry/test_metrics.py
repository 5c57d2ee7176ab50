import asyncio
import math
import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from elastic.errors import InvalidRequest
from elastic.serve.batching import Front
from elastic.serve.observer import NOT_OURS, OUTCOMES, Outcome
from elastic.serve.telemetry.metrics import RATIOS, SECONDS, SLACK_S, Metrics

from .outcomes import answered, batch, computed, refused

MANUAL = Path(__file__).parents[3] / "docs" / "serving.md"


class Clock:
    def __init__(self) -> None:
        self.s = 1_000.0

    def __call__(self) -> float:
        return self.s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry, clock: Clock) -> Metrics:
    return Metrics(registry, "3", clock)


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"replica": "3"} | labels)


def test_requests_are_counted_by_how_they_ended(metrics: Metrics, registry: CollectorRegistry, front: Front) -> None:
    for outcome in [answered(computed(front)), answered(computed(front)), refused()]:
        metrics.request_finished(outcome)
    metrics.request_finished(answered(computed(front), slack_ms=-3.0))
    counts = {name: value(registry, "elastic_requests_total", outcome=name) for name in OUTCOMES}
    assert {name: count for name, count in counts.items() if count} == {"met": 2, "late": 1, "refused": 1}
    assert None not in counts.values()


def test_inputs_are_counted_by_modality_answered_or_not(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.request_finished(refused())
    assert value(registry, "elastic_inputs_total", modality="image") == 2
    assert value(registry, "elastic_inputs_total", modality="text") == 1


def test_a_request_that_could_not_be_read_has_no_times(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.request_finished(Outcome(None, (), InvalidRequest("inputs", "is empty"), 0.1, math.nan))
    assert value(registry, "elastic_requests_total", outcome="invalid") == 1
    assert value(registry, "elastic_request_duration_seconds_count") == 0


def test_times_of_an_answer_are_in_seconds(metrics: Metrics, registry: CollectorRegistry, front: Front) -> None:
    metrics.request_finished(answered(computed(front, queue_ms=2.0), computed(front, queue_ms=9.0), slack_ms=30.0))
    sums = {
        name: value(registry, f"elastic_{name}_seconds_sum")
        for name in ("request_duration", "queue_duration", "preprocess_duration")
    }
    expected = {"request_duration": 0.02, "queue_duration": 0.009, "preprocess_duration": 0.0015}
    assert sums == pytest.approx(expected)


def test_a_late_answer_falls_below_the_zero_of_the_slacks(
    metrics: Metrics, registry: CollectorRegistry, front: Front
) -> None:
    metrics.request_finished(answered(computed(front), slack_ms=-3.0))
    metrics.request_finished(answered(computed(front), slack_ms=1.0))
    assert value(registry, "elastic_slack_seconds_bucket", le="0.0") == 1
    assert value(registry, "elastic_slack_seconds_bucket", le="-0.005") == 0


def test_the_mean_quality_can_be_taken(metrics: Metrics, registry: CollectorRegistry, front: Front) -> None:
    metrics.request_finished(answered(computed(front, level=0), computed(front, level=3)))
    total = value(registry, "elastic_served_quality_total", modality="image")
    count = value(registry, "elastic_served_inputs_total", modality="image")
    assert total is not None and count is not None and total / count == pytest.approx((0.3 + 0.6) / 2)


def test_a_batch_counts_once_and_its_inputs_by_submodel(
    metrics: Metrics, registry: CollectorRegistry, front: Front
) -> None:
    metrics.batch_ran(batch(front, num_works=3, compute_ms=12.0, predicted_ms=10.0))
    assert value(registry, "elastic_submodel_inputs_total", modality="image", granularity="M") == 3
    assert value(registry, "elastic_submodel_quality_ratio", modality="image", granularity="M") == 0.4
    assert value(registry, "elastic_batch_size_count") == 1
    assert value(registry, "elastic_batch_size_sum") == 3
    assert value(registry, "elastic_compute_duration_seconds_sum") == pytest.approx(0.012)
    assert value(registry, "elastic_prediction_ratio_sum") == pytest.approx(1.2)


def test_attainment_forgets_what_is_older_than_a_minute(
    metrics: Metrics, registry: CollectorRegistry, front: Front, clock: Clock
) -> None:
    def attainment() -> float:
        metrics.sample(0)
        found = value(registry, "elastic_slo_attainment_ratio")
        assert found is not None
        return found

    assert math.isnan(attainment())
    metrics.request_finished(refused())
    clock.s += 30.0
    for _ in range(3):
        metrics.request_finished(answered(computed(front)))
    assert attainment() == 0.75
    clock.s += 30.0
    assert attainment() == 1.0
    clock.s += 30.0
    assert math.isnan(attainment())


def test_what_the_server_could_not_have_met_does_not_lower_attainment(
    metrics: Metrics, registry: CollectorRegistry, front: Front
) -> None:
    metrics.request_finished(answered(computed(front)))
    metrics.request_finished(Outcome(None, (), InvalidRequest("inputs", "is empty"), 0.1, math.nan))
    metrics.sample(0)
    assert value(registry, "elastic_slo_attainment_ratio") == 1.0


def test_the_queue_is_sampled_until_stopped(metrics: Metrics, registry: CollectorRegistry) -> None:
    lengths = iter([5, 7])

    async def run() -> None:
        await asyncio.gather(metrics.keep_sampling(lambda: next(lengths), period_s=0.0))

    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(run())
    assert value(registry, "elastic_waiting_inputs") == 7


def test_buckets_ascend_and_cover_a_millisecond_to_ten_seconds() -> None:
    for buckets in (SECONDS, SLACK_S, RATIOS):
        assert list(buckets) == sorted(set(buckets))
    assert (SECONDS[0], SECONDS[-1], SLACK_S[0], SLACK_S[-1]) == (0.001, 10.0, -10.0, 10.0)


def test_the_manual_lists_every_metric_with_its_type_and_labels(
    metrics: Metrics, registry: CollectorRegistry, front: Front
) -> None:
    metrics.batch_ran(batch(front, num_works=1, compute_ms=1.0, predicted_ms=1.0))
    own = {}
    for family in registry.collect():
        labels = {
            label
            for sample in family.samples
            if sample.name.endswith(("_total", family.name, "_bucket"))
            for label in sample.labels
        } - {"replica", "le"}
        name = family.name + "_total" * (family.type == "counter")
        own[name] = (family.type, labels)
    text = MANUAL.read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(elastic_\w+)` \| (\w+) \|(.*?)\|", text, re.MULTILINE)
    assert {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in rows} == own


def test_the_manual_lists_every_outcome_and_whether_it_counts() -> None:
    text = MANUAL.read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (yes|no) \|", text, re.MULTILINE))
    assert {name: answer == "yes" for name, answer in listed.items()} == {
        name: name not in NOT_OURS for name in OUTCOMES
    }
