"""Policies against each other on the same arrivals, seed by seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from elastic.errors import ConfigError
from elastic.profile.tables import Modality
from elastic.serve.baselines import ClipperAimd, InfaasMinCost, MaxAccuracy, MaxBatch, SlackFit, Static
from elastic.serve.batching import Front
from elastic.serve.policy import LookaheadPolicy, Policy
from elastic.simulate.fleet import Fleet, Outcome, Requests, simulate

Fronts = Mapping[Modality, Front]

_PLAIN: Mapping[str, Callable[[Fronts], Policy]] = {
    "lookahead": lambda fronts: LookaheadPolicy(),
    "slackfit": SlackFit,
    "max_accuracy": lambda fronts: MaxAccuracy(),
    "max_batch": lambda fronts: MaxBatch(),
    "infaas_min_cost": lambda fronts: InfaasMinCost(),
}
_OF_ONE_LEVEL: Mapping[str, Callable[[int], Policy]] = {"static": Static, "clipper_aimd": ClipperAimd}

SERVED = "lookahead"
"""The server's own."""
POLICIES = (*_PLAIN, *(f"{name}={end}" for name in _OF_ONE_LEVEL for end in ("smallest", "largest")))
"""What is compared by default."""


def policy_maker(name: str, fronts: Fronts) -> Callable[[], Policy]:
    """Makes a policy by its name; those of one level take it behind a sign: `static=largest`, `static=XL`.

    Raises:
        ConfigError: there is none, or the front of images has no such level.
    """
    kind, _, level = name.partition("=")
    if kind in _PLAIN and not level:
        return lambda: _PLAIN[kind](fronts)
    if kind in _OF_ONE_LEVEL and level:
        number = _level(level, fronts["image"])
        return lambda: _OF_ONE_LEVEL[kind](number)
    known = ", ".join([*_PLAIN, *(f"{name}=LEVEL" for name in _OF_ONE_LEVEL)])
    raise ConfigError("policies", name, f"must be one of {known}")


def _level(name: str, front: Front) -> int:
    names = [level.name for level in front.levels]
    ends = {"smallest": 0, "largest": len(names) - 1}
    if name not in ends and name not in names:
        raise ConfigError(
            "policies", name, f"is no level of the front; those are smallest, largest, {', '.join(names)}"
        )
    return ends[name] if name in ends else names.index(name)


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
    """Share that was told it would be late, at once or before its turn."""
    p50_ms: float
    """Of what was computed."""
    p99_ms: float
    mean_batch: float
    decision_p50_us: float
    """Wall time of a decision on this machine."""
    decision_p99_us: float


def score(outcome: Outcome) -> Score:
    """Sum up an outcome."""
    met = outcome.met
    latency = outcome.latency_ms[~np.isnan(outcome.latency_ms)]
    p50, p99 = np.percentile(latency, [50, 99]) if len(latency) else (np.nan, np.nan)
    fast, slow = np.percentile(outcome.decision_us, [50, 99]) if len(outcome.decision_us) else (np.nan, np.nan)
    return Score(
        attainment=float(met.mean()),
        quality_met=float(outcome.quality[met].mean()) if met.any() else float("nan"),
        quality_all=float(np.where(met, outcome.quality, 0.0).mean()),
        refused=float(outcome.refused.mean()),
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
