"""OpenTelemetry spans of requests, continued from the caller's `traceparent`; off unless the environment asks.

The standard variables decide: with `OTEL_TRACES_EXPORTER`, `OTEL_EXPORTER_OTLP_ENDPOINT` or its `_TRACES_` form set,
spans are exported (OTLP needs the extra `otel`), sampled and named as OpenTelemetry's own variables say. A request's
spans are made when it has ended, from the times that its answer tells, so nothing is added while it runs.
"""

import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from elastic import __version__
from elastic.errors import ConfigError
from elastic.serve.engine import Computed
from elastic.serve.observer import Observer, Outcome

SPAN = "elastic.embed"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}

_PROPAGATOR = TraceContextTextMapPropagator()


class Traces(Observer):
    """One server span for each request that was sampled, with one child for each stage that it passed."""

    def __init__(self, tracer: Tracer, unix_ns: Callable[[], int] = time.time_ns) -> None:
        self._tracer, self._unix_ns = tracer, unix_ns

    def request_finished(self, outcome: Outcome) -> None:
        """Make its spans."""
        end_ns = self._unix_ns()
        start_ns = end_ns - _ns(outcome.total_ms)
        span = self._tracer.start_span(
            SPAN,
            _PROPAGATOR.extract(outcome.metadata, Context()),
            SpanKind.SERVER,
            attributes(outcome),
            start_time=start_ns,
        )
        if span.is_recording():
            if outcome.computed:
                self._stages(set_span_in_context(span), outcome.last, start_ns)
            if outcome.counts and outcome.error is not None:
                span.set_status(Status(StatusCode.ERROR, outcome.name))
        span.end(end_ns)

    def _stages(self, parent: Context, item: Computed, start_ns: int) -> None:
        for name, ms in (("preprocess", item.preprocess_ms), ("queue", item.queue_ms), ("compute", item.compute_ms)):
            end_ns = start_ns + _ns(ms)
            self._tracer.start_span(name, parent, start_time=start_ns).end(end_ns)
            start_ns = end_ns


def attributes(outcome: Outcome) -> dict[str, AttributeValue]:
    """What a span says of its request."""
    found: dict[str, AttributeValue] = {"elastic.outcome": outcome.name}
    if outcome.request is not None:
        found["elastic.num_inputs"] = len(outcome.request.modalities)
        found["elastic.slo_ms"] = outcome.request.slo.latency_ms
        found["elastic.slack_ms"] = outcome.slack_ms
    if outcome.computed:
        last = outcome.last
        found["elastic.submodel"] = last.level.name
        found["elastic.embed_dim"] = last.embed_dim
        found["elastic.quality"] = last.quality
        found["elastic.batch_size"] = last.batch_size
        found["elastic.predicted_ms"] = last.predicted_ms
    return found


def exporter_name(environment: Mapping[str, str]) -> str | None:
    """Which installed exporter the environment asks for; None if it asks for none.

    Raises:
        ConfigError: a protocol that OTLP has not.
    """
    asked = environment.get("OTEL_TRACES_EXPORTER") or (
        "otlp" if any(environment.get(n) for n in ENDPOINTS) else "none"
    )
    if asked == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if asked != "otlp":
        return asked
    general = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    protocol = environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", general)
    if protocol not in PROTOCOLS:
        raise ConfigError("OTEL_EXPORTER_OTLP_PROTOCOL", protocol, f"must be one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def find_exporter(environment: Mapping[str, str]) -> Callable[[], SpanExporter] | None:
    """What makes the exporter that the environment asks for, if it asks for one.

    Raises:
        ConfigError: it is not installed.
    """
    name = exporter_name(environment)
    if name is None:
        return None
    for found in entry_points(group="opentelemetry_traces_exporter", name=name):
        return found.load()
    raise ConfigError("OTEL_TRACES_EXPORTER", name, "is not installed; OTLP comes with `pip install 'elastic[otel]'`")


def tracer(exporter: SpanExporter) -> Tracer:
    """A tracer that exports in the background; sampler, batches and resource come from the environment."""
    own = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "elastic"}
    # Attributes of the environment (OTEL_RESOURCE_ATTRIBUTES) are read by create.
    provider = TracerProvider(resource=Resource.create(own), shutdown_on_exit=True)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider.get_tracer("elastic", __version__)


def _ns(ms: float) -> int:
    return round(ms * 1e6)
