"""Policies against each other on the same arrivals, seed by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from jaxtyping import Bool

from elastic.serve.policies.registry import policy_maker
from elastic.simulate.fleet import Fleet, Outcome, Requests, simulate


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One policy on one trace. Every request counts: what was late or refused was not met."""

    attainment: float
    """Share answered within the objective."""
    quality_met: float
    """Mean quality of what was met; NaN if nothing was."""
    quality_all: float
    """Mean quality over all requests, zero for those that were not met."""
    refused: float
    """Share that was told at once that it would be late."""
    kept: float
    """Share of the accepted that was met; NaN if none was accepted."""
    p50_ms: float
    """Of what was computed."""
    p99_ms: float
    mean_batch: float
    decision_p50_us: float
    """Processor time of a decision on this machine."""
    decision_p99_us: float


def score(outcome: Outcome, counted: Bool[np.ndarray, " request"] | None = None) -> Score:
    """Sum up an outcome, or the counted requests of it (batches and decisions are of all)."""
    chosen = np.ones(len(outcome.met), np.bool_) if counted is None else counted
    met, refused, quality = outcome.met[chosen], outcome.refused[chosen], outcome.quality[chosen]
    latency = outcome.latency_ms[chosen & ~np.isnan(outcome.latency_ms)]
    p50, p99 = np.percentile(latency, [50, 99]) if len(latency) else (np.nan, np.nan)
    fast, slow = np.percentile(outcome.decision_us, [50, 99]) if len(outcome.decision_us) else (np.nan, np.nan)
    return Score(
        attainment=float(met.mean()),
        quality_met=float(quality[met].mean()) if met.any() else float("nan"),
        quality_all=float(np.where(met, quality, 0.0).mean()),
        refused=float(refused.mean()),
        kept=float(met[~refused].mean()) if not refused.all() else float("nan"),
        p50_ms=float(p50),
        p99_ms=float(p99),
        mean_batch=float(outcome.batch_sizes.mean()) if len(outcome.batch_sizes) else float("nan"),
        decision_p50_us=float(fast),
        decision_p99_us=float(slow),
    )


def compare(
    fleet: Fleet,
    policies: Sequence[str],
    traces: Mapping[int, Requests],
    on_done: Callable[[], None] = lambda: None,
) -> dict[str, dict[int, Score]]:
    """Scores by policy and seed: of each seed, all policies serve the same arrivals."""
    found: dict[str, dict[int, Score]] = {}
    for name in policies:
        served = replace(fleet, policy=policy_maker(name, fleet.fronts))
        found[name] = {}
        for seed, requests in traces.items():
            found[name][seed] = score(simulate(served, requests, seed))
            on_done()
    return found


def mean_scores(by_seed: Mapping[int, Score]) -> tuple[Score, Score]:
    """The mean over seeds, and the standard deviation between them (NaN with one seed)."""
    values = {f.name: np.array([getattr(one, f.name) for one in by_seed.values()]) for f in fields(Score)}
    spread = {name: float(column.std(ddof=1)) if len(column) > 1 else float("nan") for name, column in values.items()}
    return Score(**{name: float(column.mean()) for name, column in values.items()}), Score(**spread)
