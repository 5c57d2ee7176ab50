from importlib.metadata import EntryPoint

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from elastic.errors import ConfigError
from elastic.serve.batching import Front
from elastic.serve.telemetry import tracing
from elastic.serve.telemetry.tracing import SPAN, Traces, exporter_name, find_exporter

from .outcomes import Sent, answered, computed, refused

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"
NOW_NS = 1_700_000_000_000_000_000


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Traces:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traces(provider.get_tracer("test"), unix_ns=lambda: NOW_NS)


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def milliseconds(span: ReadableSpan) -> tuple[float, float]:
    """When a span began and ended, in milliseconds before the answer."""
    assert span.start_time is not None and span.end_time is not None
    return (span.start_time - NOW_NS) / 1e6, (span.end_time - NOW_NS) / 1e6


def test_a_request_continues_its_callers_trace(traces: Traces, exporter: InMemorySpanExporter, front: Front) -> None:
    caller = Sent({"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"})
    traces.request_finished(answered(computed(front), caller=caller))
    span = by_name(exporter)[SPAN]
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert span.parent is not None and f"{span.parent.span_id:016x}" == PARENT_ID
    assert span.kind is SpanKind.SERVER


def test_a_trace_that_its_caller_did_not_sample_is_not_exported(
    traces: Traces, exporter: InMemorySpanExporter, front: Front
) -> None:
    caller = Sent({"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-00"})
    traces.request_finished(answered(computed(front), caller=caller))
    assert not exporter.get_finished_spans()


@pytest.mark.parametrize("metadata", [{}, {"traceparent": "nonsense"}])
def test_a_caller_without_a_trace_begins_one(
    traces: Traces, exporter: InMemorySpanExporter, front: Front, metadata: dict[str, str]
) -> None:
    traces.request_finished(answered(computed(front), caller=Sent(metadata)))
    assert by_name(exporter)[SPAN].parent is None


def test_stages_follow_each_other_inside_the_request(
    traces: Traces, exporter: InMemorySpanExporter, front: Front
) -> None:
    traces.request_finished(answered(computed(front, queue_ms=2.0), slack_ms=30.0))
    spans = by_name(exporter)
    times = {name: milliseconds(span) for name, span in spans.items()}
    assert times == {
        SPAN: (-20.0, 0.0),
        "preprocess": (-20.0, -18.5),
        "queue": (-18.5, -16.5),
        "compute": (-16.5, -8.5),
    }
    root = spans[SPAN].context.span_id
    assert {span.parent.span_id for name, span in spans.items() if name != SPAN and span.parent} == {root}


def test_the_stages_are_those_of_the_input_that_came_last(
    traces: Traces, exporter: InMemorySpanExporter, front: Front
) -> None:
    traces.request_finished(answered(computed(front, queue_ms=0.0), computed(front, queue_ms=4.0)))
    begin_ms, end_ms = milliseconds(by_name(exporter)["queue"])
    assert end_ms - begin_ms == 4.0


def test_a_span_says_what_ran_and_how_it_ended(traces: Traces, exporter: InMemorySpanExporter, front: Front) -> None:
    traces.request_finished(answered(computed(front, level=2), slack_ms=30.0))
    found = dict(by_name(exporter)[SPAN].attributes or {})
    assert found == {
        "elastic.outcome": "met",
        "elastic.num_inputs": 1,
        "elastic.slo_ms": 50.0,
        "elastic.slack_ms": 30.0,
        "elastic.submodel": "L",
        "elastic.embed_dim": 64,
        "elastic.quality": 0.5,
        "elastic.batch_size": 2,
        "elastic.predicted_ms": 7.0,
    }


def test_a_refusal_is_a_failed_span_without_stages(traces: Traces, exporter: InMemorySpanExporter) -> None:
    traces.request_finished(refused())
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "refused"


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, "otlp_proto_http"),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, None),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, None),
    ],
)
def test_the_environment_chooses_the_exporter(environment: dict[str, str], name: str | None) -> None:
    assert exporter_name(environment) == name


def test_a_protocol_that_otlp_has_not_is_named() -> None:
    with pytest.raises(ConfigError, match="http/protobuf"):
        exporter_name({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "smtp"})


def test_an_exporter_that_is_not_installed_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def installed(group: str, name: str) -> list[EntryPoint]:
        return []

    monkeypatch.setattr(tracing, "entry_points", installed)
    with pytest.raises(ConfigError, match=r"elastic\[otel\]"):
        find_exporter({"OTEL_TRACES_EXPORTER": "otlp"})


def test_an_installed_exporter_is_found_and_none_is_made_unasked() -> None:
    assert find_exporter({"OTEL_TRACES_EXPORTER": "console"}) is ConsoleSpanExporter
    assert find_exporter({}) is None
