"""From the samples of all rounds to medians, ratios, two tables and a JSON file."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.server_cost.workload import PAUSE_MS
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect

RESULTS = Path(__file__).parents[1] / "results" / "server_cost.json"
GOAL_P50_MS, GOAL_THROUGHPUT = 2.0, 0.9

Round = dict[str, dict[str, Any]]
"""By contender: latencies_ms at concurrency 1, per_s by concurrency (bare: by batch size), CPU times, and more."""

Range = tuple[float, float, float]
"""Median, least and most over rounds."""


def summarise(rounds: Sequence[Round]) -> dict[str, Any]:
    """By contender: p50, its distance from bare, throughput, its ratio to bare, CPU per request; parts of the time."""
    return {name: _contender(name, rounds) for name in rounds[0]} | {"parts": parts(rounds)}


def _contender(name: str, rounds: Sequence[Round]) -> dict[str, Any]:
    def over(value: Callable[[Round], float]) -> Range:
        values = [value(results) for results in rounds]
        return float(np.median(values)), min(values), max(values)

    best = _best(name, rounds)
    found: dict[str, Any] = {
        "p50_ms": over(lambda results: _p50(results[name])),
        "p50_minus_bare_ms": over(lambda results: _p50(results[name]) - _p50(results["bare"])),
        "p99_ms": over(lambda results: float(np.quantile(results[name]["latencies_ms"], 0.99))),
        "best_at": best,
        "per_s": over(lambda results: results[name]["per_s"][best]),
        "over_bare": over(lambda results: results[name]["per_s"][best] / _bare_per_s(results, rounds)),
        "cpu_ms": {at: over(lambda results, at=at: results[name]["cpu_ms"][at]) for at in rounds[0][name]["cpu_ms"]},
    }
    if "full_calls_per_s" in rounds[0][name]:
        best_full = _best(name, rounds, "full_calls_per_s")
        found["full_calls_at"] = best_full
        found["full_calls_per_s"] = over(lambda results: results[name]["full_calls_per_s"][best_full])
        found["full_calls_over_bare"] = over(
            lambda results: results[name]["full_calls_per_s"][best_full] / _bare_per_s(results, rounds)
        )
    if "client_cpu_ms" in rounds[0][name]:
        found["client_cpu_ms"] = over(lambda results: results[name]["client_cpu_ms"][best])
    return found


def _best(name: str, rounds: Sequence[Round], what: str = "per_s") -> str:
    """The concurrency (bare: batch size) of the highest median throughput."""
    return max(rounds[0][name][what], key=lambda at: float(np.median([results[name][what][at] for results in rounds])))


def _bare_per_s(results: Round, rounds: Sequence[Round]) -> float:
    return results["bare"]["per_s"][_best("bare", rounds)]


def _p50(samples: dict[str, Any]) -> float:
    return float(np.median(samples["latencies_ms"]))


def parts(rounds: Sequence[Round]) -> dict[str, float]:
    """Where a call through `elastic serve` spends its time at concurrency 1: medians over all calls, milliseconds."""

    def pooled(name: str, key: str) -> np.ndarray:
        return np.concatenate([np.array(results[name][key]) for results in rounds])

    ours = "elastic serve"
    latency, total = pooled(ours, "latencies_ms"), pooled(ours, "total_ms")
    prepare, queue, compute = (pooled(ours, key) for key in ("prepare_ms", "queue_ms", "compute_ms"))
    nothing, direct = pooled(ours, "nothing_ms"), pooled(ours, "nothing_direct_ms")
    bare_prepare, bare = pooled("bare", "prepare_ms"), pooled("bare", "latencies_ms")
    found = {
        "client to client": latency,
        "outside the replica's handler": latency - total,
        "reading, admission, decoding": prepare,
        "queue and policy": queue,
        "model": compute,
        "explanation and reply": total - prepare - queue - compute,
        "bare: decoding": bare_prepare,
        "bare: model": bare - bare_prepare,
        f"bare: both, after a pause of {PAUSE_MS:g} ms": pooled("bare", "paused_ms"),
        "a call that does nothing, through HAProxy": nothing,
        "a call that does nothing, straight to the replica": direct,
    }
    return {name: float(np.median(values)) for name, values in found.items()}


def compared(model: str, summary: dict[str, Any]) -> Table:
    """All contenders side by side."""
    columns = ("", "p50 ms", "minus bare", "p99 ms", "images/s", "at once", "over bare", "CPU ms", "client CPU ms")
    columns += ("images/s in full calls", "at once", "over bare")
    table = Table(*columns, title=f"{model}: medians over rounds (least to most)")
    for name, row in summary.items():
        if name == "parts":
            continue
        is_bare = name == "bare"
        at = f"batch {row['best_at']}" if is_bare else f"{row['best_at']} calls"
        saturated = row["cpu_ms"].get(row["best_at"], row["cpu_ms"]["1"])
        table.add_row(
            *(name, _range(row["p50_ms"]), "" if is_bare else _range(row["p50_minus_bare_ms"])),
            *(f"{row['p99_ms'][0]:.2f}", _range(row["per_s"]), at, "" if is_bare else _range(row["over_bare"])),
            *(f"{saturated[0]:.2f}", "" if is_bare else f"{row['client_cpu_ms'][0]:.2f}"),
            *_full_calls(row),
        )
    ours = summary["elastic serve"]
    verdicts = (
        f"p50 within {GOAL_P50_MS} ms of bare: {_verdict(ours['p50_minus_bare_ms'], lambda ms: ms <= GOAL_P50_MS)}",
        f"throughput {GOAL_THROUGHPUT} of bare: {_verdict(ours['over_bare'], lambda ratio: ratio >= GOAL_THROUGHPUT)}",
        f"in full calls: {_verdict(ours['full_calls_over_bare'], lambda ratio: ratio >= GOAL_THROUGHPUT)}",
    )
    table.caption = (
        f"goals: {'; '.join(verdicts)}. CPU per request, where throughput was taken; bare: one at a time. Full calls "
        "hold as many images as a batch, others one"
    )
    return table


def _verdict(values: Range, is_met: Callable[[float], bool]) -> str:
    """Of the median, which says so where rounds differ."""
    word = "met" if is_met(values[0]) else "missed"
    return word if len({is_met(value) for value in values}) == 1 else f"{word} in the median"


def _full_calls(row: dict[str, Any]) -> tuple[str, str, str]:
    if "full_calls_per_s" not in row:
        return ("", "", "")
    return (_range(row["full_calls_per_s"]), f"{row['full_calls_at']} calls", _range(row["full_calls_over_bare"]))


def taken_apart(model: str, summary: dict[str, Any]) -> Table:
    """Where the time goes."""
    table = Table("part", "ms", title=f"{model}: one call at a time through elastic serve")
    for name, value in summary["parts"].items():
        table.add_row(name, f"{value:.3f}")
    return table


def write(report: dict[str, Any], rounds: dict[str, list[Round]]) -> Path:
    """The JSON file: provenance, summary, and every sample."""
    goals = {"p50_minus_bare_ms": GOAL_P50_MS, "throughput_over_bare": GOAL_THROUGHPUT}
    found = asdict(collect(device_fingerprint("cpu"))) | {"goals": goals} | report | {"rounds": _compact(rounds)}
    RESULTS.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return RESULTS


def _compact(value: Any) -> Any:
    """The same nest with floats of microsecond resolution."""
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {key: _compact(item) for key, item in value.items()}
    return [_compact(item) for item in value] if isinstance(value, list) else value


def _range(values: Range) -> str:
    median, least, most = (f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}" for value in values)
    return f"{median} ({least} to {most})"
