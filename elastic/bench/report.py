"""A summary for people and for programs: tables on the terminal, and values that are valid JSON."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from elastic.bench.load import Outcome
from elastic.bench.summary import Percentiles, Service, Summary
from elastic.bench.windows import NUM_ALIKE, Window

LOST = (Outcome.EXPIRED, Outcome.UNANSWERED, Outcome.FAILED)
MAX_SUBMODELS = 6
"""Named in the line of shares; the others are counted together."""


def print_report(console: Console, title: str, summary: Summary, messages: Mapping[str, str]) -> None:
    """All that a person wants to see of a load, the reasons to doubt it last."""
    console.print(services(title, summary))
    console.print()
    console.print(times(summary))
    console.print()
    for line in remarks(summary, messages):
        console.print(line, soft_wrap=True)


def services(title: str, summary: Summary) -> Table:
    """A line per objective and per modality, where there are several, and one for all."""
    caption = (
        "Every request counts, from its intended time. met: answered within the objective. R@1: measured quality, of "
        "what was met, and of all, where the rest counts zero. ms: of answers, late ones too. lost: expired, "
        "unanswered or failed."
    )
    table = _table(title)
    table.caption, table.caption_justify = caption, "left"
    table.add_column("", no_wrap=True)
    for column in ("requests", "met", "met/s", "R@1 met / all", "p50 / p99 ms", "refused", "lost"):
        table.add_column(column, justify="right", no_wrap=True)
    by_slo = {f"{slo_ms:g} ms": service for slo_ms, service in summary.by_slo.items()}
    parts = [part for part in (by_slo, summary.by_modality) if len(part) > 1]
    for part in parts or [by_slo]:
        for name, service in part.items():
            table.add_row(name, *_cells(service))
        table.add_section()
    if parts:
        table.add_row("all", *_cells(summary.overall), style="bold")
    return table


def times(summary: Summary) -> Table:
    """Where the time of an answer goes, as the server says, and what the client saw around it."""
    server = summary.server
    rows: Sequence[tuple[str, Percentiles]] = (
        ("server: decoding", server.preprocess_ms),
        ("server: queue", server.queue_ms),
        ("server: model (whole batch)", server.compute_ms),
        ("server: between these", server.between_ms),
        ("server: total", server.total_ms),
        ("outside of the server", server.outside_ms),
        ("client: intended to answered", summary.overall.latency_ms),
        ("client: sent late by", summary.lag_ms),
    )
    table = _table("Where the time of an answer went, ms")
    table.add_column("", no_wrap=True)
    for column in ("p50", "p90", "p99"):
        table.add_column(column, justify="right")
    for name, found in rows:
        table.add_row(name, *(_number(value, 2) for value in (found.p50, found.p90, found.p99)))
    return table


def remarks(summary: Summary, messages: Mapping[str, str]) -> Iterator[str]:
    """Who answered, what was really sent, what went wrong, and whether the generator is to blame."""
    traffic, server = summary.traffic, summary.server
    yield f"submodels  {_submodels(summary)}; mean batch {_number(server.mean_batch, 1)}"
    yield (
        f"traffic    {traffic.requests:,} requests, {traffic.rate:.1f}/s, gaps of cv2 {_number(traffic.cv2, 2)}, "
        f"dispersion {_number(traffic.dispersion, 2)}, peak {_number(traffic.peak_to_mean, 1)} times the mean "
        "(Poisson: 1 and 1)"
    )
    yield f"server     believes that it met {_percent(server.attainment)}: it cannot count the way of the answer"
    if summary.overall.shares[Outcome.REFUSED]:
        told = summary.overall.refusal_ms
        yield f"refusals   came after {_ms(told.p50)} ms (p50) and {_ms(told.p99)} ms (p99)"
    yield f"generator  used {_percent(summary.cpu_share)} of a core"
    for error, count in summary.errors.items():
        share, words = _percent(count / summary.overall.requests), escape(messages.get(error, ""))
        yield f"[yellow]{escape(error)}[/yellow]: {count:,} requests ({share}), the first: {words}"
    if summary.generator_problem:
        advice = "give it a machine of its own, or ask for less"
        yield f"[bold yellow]the load generator was a bottleneck[/bold yellow]: {summary.generator_problem}; {advice}"


def stability(windows: Sequence[Window], stable: bool, tolerance: float) -> str:
    """Whether the last windows agree, in a sentence that shows them."""
    last = windows[-NUM_ALIKE:]
    seen = ", ".join(f"{window.throughput:.1f}/s and {_ms(window.p99_ms)} ms" for window in last)
    if stable:
        return f"stable: throughput and p99 of the last {NUM_ALIKE} windows within {tolerance:.0%} ({seen})"
    if len(windows) < NUM_ALIKE:
        return f"[yellow]did not stabilise[/yellow]: {len(windows)} whole windows, {NUM_ALIKE} are needed"
    return (
        f"[yellow]did not stabilise[/yellow]: throughput or p99 of the last windows is further from their mean than "
        f"{tolerance:.0%} ({seen})"
    )


def json_values(value: Any) -> Any:
    """The same with what JSON has no word for as null, and keys as text."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {f"{key:g}" if isinstance(key, float) else str(key): json_values(one) for key, one in value.items()}
        case list() | tuple():
            return [json_values(one) for one in value]
        case _:
            return value


def as_json(summary: Summary, windows: Sequence[Window], stable: bool) -> dict[str, Any]:
    """The numbers of `bench.json`."""
    found = {"summary": asdict(summary), "stable": stable, "windows": [asdict(window) for window in windows]}
    return json_values(found | {"generator_problem": summary.generator_problem})


def _table(title: str) -> Table:
    """Narrow enough for eighty columns."""
    return Table(title=title, title_justify="left", box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))


def _cells(service: Service) -> tuple[str, ...]:
    return (
        f"{service.requests:,}",
        _percent(service.attainment),
        f"{service.goodput:.1f}",
        f"{_number(service.quality_met, 3)} / {_number(service.quality_all, 3)}",
        f"{_ms(service.latency_ms.p50)} / {_ms(service.latency_ms.p99)}",
        _percent(service.shares[Outcome.REFUSED]),
        _percent(sum(service.shares[outcome] for outcome in LOST)),
    )


def _submodels(summary: Summary) -> str:
    named = list(summary.submodels.items())
    shown = [f"{name} {share:.1%}" for name, share in named[:MAX_SUBMODELS]]
    if others := named[MAX_SUBMODELS:]:
        shown.append(f"{len(others)} others {sum(share for _, share in others):.1%}")
    return ", ".join(shown) or "none answered"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _ms(value: float) -> str:
    return _number(value, 1 if value < 100 else 0)


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"
