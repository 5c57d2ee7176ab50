"""Prometheus metrics of one replica that generates, named as vLLM names its own, with our prefix.

`vllm:spec_decode_num_drafts` is `elastic_spec_decode_num_drafts_total` here, and so on. Every series carries the label
`replica`, as those of `telemetry.metrics` do, and `elastic_requests_total` counts the same outcomes. No ray.
"""

import asyncio
import time
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from elastic.lm.gamma import MAX_GAMMA
from elastic.lm.generate import Step
from elastic.serve.generation.engine import Running
from elastic.serve.generation.observer import GenerationObserver, GenerationOutcome
from elastic.serve.observer import OUTCOMES

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
"""Of tokens; vLLM's with two shorter ones."""
REQUEST_SECONDS = (0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0)
"""Of whole requests."""


class GenerationMetrics(GenerationObserver):
    """Counts what a replica does, in a registry."""

    def __init__(self, registry: CollectorRegistry, replica: str = "0") -> None:
        self._registry, self._replica = registry, replica
        self._requests = self._counters("elastic_requests", "Requests by how they ended", "outcome", OUTCOMES)
        self._prompt_tokens = self._counter("elastic_prompt_tokens", "Tokens of all prompts that were read")
        self._tokens = self._counter("elastic_generation_tokens", "Tokens that were generated")
        self._submodels = Counter(
            "elastic_granularity_tokens",
            "Tokens that were generated, by the submodel that did",
            ["replica", "granularity"],
            registry=registry,
        )
        self._make_histograms()
        self._make_draft_counters()
        self._started = self._gauge("elastic_replica_start_time_seconds", "When the replica was started, since 1970")
        self._started.set(time.time())
        self._running = self._gauge("elastic_num_requests_running", "Requests that hold a place")
        self._running.set(0)

    def _make_histograms(self) -> None:
        def histogram(name: str, text: str, buckets: Sequence[float] = SECONDS) -> Histogram:
            family = Histogram(name, text, ["replica"], registry=self._registry, buckets=buckets)
            return family.labels(self._replica)

        self._first = histogram("elastic_time_to_first_token_seconds", "From arrival to the first token")
        self._gap = histogram(
            "elastic_inter_token_latency_seconds", "Between a token and the one before, those of one step evenly apart"
        )
        self._mean = histogram(
            "elastic_request_time_per_output_token_seconds", "Mean time per token after the first step of a request"
        )
        self._total = histogram(
            "elastic_request_duration_seconds", "From the arrival of an answered request to its end", REQUEST_SECONDS
        )

    def _make_draft_counters(self) -> None:
        prefix = "elastic_spec_decode_num"
        self._drafts = self._counter(f"{prefix}_drafts", "Drafts that were verified")
        self._draft_tokens = self._counter(f"{prefix}_draft_tokens", "Tokens of all drafts")
        self._accepted = self._counter(f"{prefix}_accepted_tokens", "Tokens of drafts that the target accepted")
        self._accepted_at = self._counters(
            f"{prefix}_accepted_tokens_per_pos",
            "Tokens of drafts that the target accepted, by their position in the draft",
            "position",
            [str(position) for position in range(MAX_GAMMA)],
        )

    def step_ran(self, running: Running, step: Step, gap_ms: float) -> None:
        """Count a step."""
        count = len(step.tokens[0])
        is_first = running.num_tokens == count
        if is_first:
            self._prompt_tokens.inc(len(running.job.prompt))
            self._first.observe(gap_ms / 1000)
        else:
            for _ in range(count):
                self._gap.observe(gap_ms / 1000 / count)
        self._tokens.inc(count)
        self._submodels.labels(self._replica, running.choice.option.name).inc(count)
        if step.num_draft_tokens[0]:
            self._drafts.inc()
            self._draft_tokens.inc(step.num_draft_tokens[0])
            self._accepted.inc(step.num_accepted_tokens[0])
            for position in range(step.num_accepted_tokens[0]):
                self._accepted_at[str(position)].inc()

    def request_finished(self, outcome: GenerationOutcome) -> None:
        """Count a request."""
        self._requests[outcome.name].inc()
        if outcome.error is None and outcome.running is not None:
            self._total.observe(outcome.total_ms / 1000)
            if outcome.running.token_ms:
                self._mean.observe(outcome.running.token_ms / 1000)

    async def keep_sampling(self, num_running: Callable[[], int], period_s: float = 1.0) -> None:
        """Show how many requests hold a place, for ever."""
        while True:
            self._running.set(num_running())
            await asyncio.sleep(period_s)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, ["replica"], registry=self._registry).labels(self._replica)

    def _counters(self, name: str, text: str, label: str, values: Sequence[str]) -> dict[str, Counter]:
        # All at once, so that a rate is 0, and not missing, until the first one.
        family = Counter(name, text, ["replica", label], registry=self._registry)
        return {value: family.labels(self._replica, value) for value in values}

    def _gauge(self, name: str, text: str) -> Gauge:
        # "live": of several processes only those that still run are shown.
        family = Gauge(name, text, ["replica"], registry=self._registry, multiprocess_mode="livemostrecent")
        return family.labels(self._replica)
