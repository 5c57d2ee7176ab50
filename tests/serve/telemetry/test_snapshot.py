import math
import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from elastic.serve.batching import Front
from elastic.serve.telemetry.metrics import SECONDS, Metrics
from elastic.serve.telemetry.snapshot import Interval, Snapshot, quantile

from .outcomes import answered, batch, computed, refused


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def read(registry: CollectorRegistry, at_s: float) -> Snapshot:
    return Snapshot.parse(generate_latest(registry).decode(), at_s)


def test_only_what_happened_between_two_snapshots_is_told(
    metrics: Metrics, registry: CollectorRegistry, front: Front
) -> None:
    metrics.request_finished(answered(computed(front, level=0)))
    earlier = read(registry, at_s=100.0)
    for outcome in [answered(computed(front, level=3)), answered(computed(front, level=3)), refused()]:
        metrics.request_finished(outcome)
    between = Interval(earlier, read(registry, at_s=110.0))
    outcomes = between.by("outcome", "elastic_requests_total")
    assert {name: number for name, number in outcomes.items() if number} == {"met": 2, "refused": 1}
    assert between.seconds == 10.0
    assert between.attainment == between.attainment_of(replica="0") == pytest.approx(2 / 3)
    assert between.refused_share == pytest.approx(1 / 3)
    assert between.qualities == pytest.approx({"image": 0.6})


def test_nothing_happened_is_no_number_but_no_error(metrics: Metrics, registry: CollectorRegistry) -> None:
    now = read(registry, at_s=100.0)
    between = Interval(now, now)
    assert all(math.isnan(value) for value in (between.attainment, between.refused_share, between.mean_batch_size))
    assert math.isnan(between.quantiles("elastic_request_duration_seconds", [0.5])[0])
    assert between.submodels() == [] and between.qualities == {}


def test_the_whole_life_is_what_happened_since_a_snapshot_before_it(
    metrics: Metrics, registry: CollectorRegistry, front: Front
) -> None:
    metrics.request_finished(answered(computed(front)))
    now = read(registry, at_s=time.time() + 60.0)
    life = Interval(now.before_it_began(), now)
    assert life.total("elastic_requests_total", outcome="met") == 1
    assert life.seconds >= 60.0


def test_a_server_that_was_started_anew_does_not_count_backwards(front: Front) -> None:
    def snapshot(num_requests: int, at_s: float) -> Snapshot:
        registry = CollectorRegistry()
        metrics = Metrics(registry)
        for _ in range(num_requests):
            metrics.request_finished(refused())
        return read(registry, at_s)

    assert Interval(snapshot(9, 1.0), snapshot(2, 2.0)).total("elastic_requests_total") == 2


def test_submodels_come_in_ascending_quality(metrics: Metrics, registry: CollectorRegistry, front: Front) -> None:
    ran = batch(front, num_works=3, compute_ms=1.0, predicted_ms=1.0)
    metrics.batch_ran(type(ran)(ran.run, front.levels[3], 1.0))
    metrics.batch_ran(ran)
    now = read(registry, at_s=100.0)
    found = Interval(now.before_it_began(), now).submodels()
    assert [(item.granularity, item.quality, item.num_inputs) for item in found] == [("M", 0.4, 3), ("XL", 0.6, 3)]


def test_gauges_are_summed_over_the_replicas() -> None:
    registry = CollectorRegistry()
    Metrics(registry, "0").sample(4)
    other = CollectorRegistry()
    Metrics(other, "1").sample(3)
    both = read(registry, 1.0).values | read(other, 1.0).values
    now = Snapshot(1.0, both)
    assert Interval(now, now).gauge("elastic_waiting_inputs") == 7
    assert Interval(now, now).gauge("elastic_waiting_inputs", replica="1") == 3
    assert sorted(now.started_s) == ["0", "1"]


def test_a_quantile_is_inside_the_bucket_of_the_true_one() -> None:
    values = np.random.default_rng(0).lognormal(-3.0, 1.0, 2_000)
    bounds = [*SECONDS, math.inf]
    buckets = {bound: float((values <= bound).sum()) for bound in bounds}
    for share in (0.01, 0.5, 0.9, 0.99):
        true, found = float(np.quantile(values, share)), quantile(buckets, share)
        upper = next(bound for bound in bounds if bound >= true)
        lower = max([bound for bound in bounds if bound < true], default=0.0)
        assert lower <= found <= upper


def test_quantiles_lie_evenly_inside_a_bucket_and_stop_at_the_last_bound() -> None:
    assert quantile({1.0: 0.0, 3.0: 10.0, math.inf: 10.0}, 0.5) == 2.0
    assert quantile({1.0: 0.0, 3.0: 1.0, math.inf: 10.0}, 0.99) == 3.0
    assert quantile({-1.0: 0.0, 0.0: 4.0, math.inf: 4.0}, 0.5) == -0.5


def test_a_page_of_something_else_has_nothing_of_ours() -> None:
    assert not Snapshot.parse("# HELP up Up\nup 1\n", 1.0).values
    with pytest.raises(ValueError):
        Snapshot.parse("<html>not metrics</html>", 1.0)
