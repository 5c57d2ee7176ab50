import asyncio
from contextlib import suppress

import pytest
from prometheus_client import CollectorRegistry

from elastic.errors import Overloaded
from elastic.serve.generation.choice import Choice, Option
from elastic.serve.generation.engine import Running
from elastic.serve.generation.metrics import GenerationMetrics
from elastic.serve.generation.observer import GenerationOutcome
from elastic.serve.observer import OUTCOMES
from elastic.serve.policy import Limit
from elastic.submodel import Submodel
from tests.serve.generation.conftest import Written, a_job, a_step


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> GenerationMetrics:
    return GenerationMetrics(registry, "0")


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"replica": "0"} | labels)


def a_text(metrics: GenerationMetrics) -> Running:
    """A first token after 40 ms; then two of three drafted ones stand, and one more comes, all 30 ms later."""
    choice = Choice(Option(Submodel((64, 64)), "XL", None, 1.0), 1.0, Limit.NONE)
    running = Running(a_job(), choice, Written([]), num_sequences=1)
    steps = [(a_step([1]), 40.0), (a_step([2, 3, 4], "length", drafted=3, accepted=2), 70.0)]
    for (step, now_ms), gap_ms in zip(steps, (40.0, 30.0), strict=True):
        running.take(step, now_ms)
        metrics.step_ran(running, step, gap_ms)
    return running


def test_tokens_and_drafts_are_counted_under_vllms_names(
    metrics: GenerationMetrics, registry: CollectorRegistry
) -> None:
    a_text(metrics)
    assert value(registry, "elastic_prompt_tokens_total") == 2
    assert value(registry, "elastic_generation_tokens_total") == 4
    assert value(registry, "elastic_granularity_tokens_total", granularity="XL") == 4
    assert value(registry, "elastic_spec_decode_num_drafts_total") == 1
    assert value(registry, "elastic_spec_decode_num_draft_tokens_total") == 3
    assert value(registry, "elastic_spec_decode_num_accepted_tokens_total") == 2
    positions = [
        value(registry, "elastic_spec_decode_num_accepted_tokens_per_pos_total", position=str(place))
        for place in range(4)
    ]
    assert positions == [1, 1, 0, 0]


def test_the_first_token_and_those_behind_it_are_timed_apart(
    metrics: GenerationMetrics, registry: CollectorRegistry
) -> None:
    running = a_text(metrics)
    metrics.request_finished(GenerationOutcome(running.job, running, None, 72.0))
    assert value(registry, "elastic_time_to_first_token_seconds_sum") == pytest.approx(0.040)
    assert value(registry, "elastic_inter_token_latency_seconds_count") == 3
    assert value(registry, "elastic_inter_token_latency_seconds_sum") == pytest.approx(0.030)
    assert value(registry, "elastic_request_time_per_output_token_seconds_sum") == pytest.approx(0.010)
    assert value(registry, "elastic_request_duration_seconds_sum") == pytest.approx(0.072)


def test_requests_are_counted_by_how_they_ended(metrics: GenerationMetrics, registry: CollectorRegistry) -> None:
    running = a_text(metrics)
    metrics.request_finished(GenerationOutcome(running.job, running, None, 72.0))
    metrics.request_finished(GenerationOutcome(running.job, None, Overloaded("full", 1.0), 0.1))
    found = {name: value(registry, "elastic_requests_total", outcome=name) for name in OUTCOMES}
    assert {name: count for name, count in found.items() if count} == {"met": 1, "refused": 1}
    assert value(registry, "elastic_request_duration_seconds_count") == 1


def test_running_requests_are_sampled(metrics: GenerationMetrics, registry: CollectorRegistry) -> None:
    async def sample() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(metrics.keep_sampling(lambda: 3, period_s=0.001), 0.01)

    asyncio.run(sample())
    assert value(registry, "elastic_num_requests_running") == 3
    assert value(registry, "elastic_replica_start_time_seconds") > 1e9  # type: ignore[operator]
