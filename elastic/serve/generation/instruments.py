"""What listens to a replica that generates, by its settings and its environment: metrics, and the log of requests."""

from math import inf, isinf
from typing import TYPE_CHECKING

from elastic.serve.config import ServeConfig
from elastic.serve.generation.observer import GenerationObserver, GenerationOutcome
from elastic.serve.telemetry.instruments import replica_registry
from elastic.serve.telemetry.logs import RequestLog, sender_fields

if TYPE_CHECKING:
    from elastic.serve.generation.metrics import GenerationMetrics


def generation_metrics(replica: str) -> "GenerationMetrics | None":
    """What counts in this process, if its server shows metrics."""
    registry = replica_registry()
    if registry is None:
        return None
    from elastic.serve.generation.metrics import GenerationMetrics

    return GenerationMetrics(registry, replica)


def generation_log(config: ServeConfig, replica: str) -> "GenerationLog | None":
    """What logs requests, if the settings name a folder for it."""
    if config.log_requests is None:
        return None
    return GenerationLog(RequestLog(config.log_requests / f"requests-{replica}.jsonl", config.log_sample))


class GenerationLog(GenerationObserver):
    """Writes one line for each sampled request, and for every one that met a fault of the server; never its text."""

    def __init__(self, log: RequestLog) -> None:
        self._log = log

    def request_finished(self, outcome: GenerationOutcome) -> None:
        """Write its line."""
        self._log.write(outcome.name, lambda: fields(outcome))

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def fields(outcome: GenerationOutcome) -> dict[str, object]:
    """What is told of a request; what is not known of it is left out."""
    found: dict[str, object] = {"outcome": outcome.name, "total_ms": round(outcome.total_ms, 3)}
    found |= sender_fields(outcome.metadata, outcome.key)
    if outcome.job is not None:
        found["prompt_tokens"] = len(outcome.job.prompt)
        if not isinf(outcome.job.slo.token_ms):
            found["slo_token_ms"] = outcome.job.slo.token_ms
    running = outcome.running
    if running is not None:
        statistics = running.generation.statistics
        found["submodel"] = running.choice.option.name
        found["predicted_token_ms"] = round(running.choice.predicted_ms, 3)
        found["sequences"] = running.num_sequences
        found["generation_tokens"] = running.num_tokens
        found["drafts"], found["draft_tokens"] = statistics.num_drafts, statistics.num_draft_tokens
        found["accepted_tokens"] = statistics.num_accepted_tokens
        if running.first_token_ms < inf:
            found["first_token_ms"] = round(running.first_token_ms - running.job.arrived_ms, 3)
            found["token_ms"] = round(running.token_ms, 3)
    if outcome.error is not None:
        found["error"] = type(outcome.error).__name__
    return found
