"""Fleets that grow and shrink against fleets that do not, on the same arrivals, seed by seed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from elastic.serve.scaling.scaler import DeficitScaler, Scaler, ScalingRules
from elastic.simulate.compare import Score, score
from elastic.simulate.fleet import Fleet, Requests, simulate
from elastic.simulate.scaling import History, OngoingRequests, Scaling

OURS = "the server's"


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetScore:
    """One fleet on one trace."""

    answers: Score
    replica_seconds: float
    """From the start of each replica's process to its end."""
    changes: int
    """How often another number was wanted."""
    turns: int
    """How often the wish for more became one for fewer, or the reverse."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a fleet made of all traces."""

    scores: Mapping[int, FleetScore]
    """By seed."""
    shown: History
    """Of the first seed, for the plot."""

    def mean(self, name: str) -> float:
        """Over seeds, of a field of `FleetScore` or of its answers."""
        found = [getattr(one if hasattr(one, name) else one.answers, name) for one in self.scores.values()]
        return float(np.mean(found))


def scalers(rules: ScalingRules) -> dict[str, Callable[[], Scaler]]:
    """The server's, and Ray Serve's own as it comes and with the server's delays."""
    limits = (rules.min_replicas, rules.max_replicas)
    fast = partial(
        OngoingRequests,
        *limits,
        look_back_s=rules.window_s,
        up_after_s=rules.up_after_s,
        down_after_s=rules.down_after_s,
    )
    return {
        OURS: partial(DeficitScaler, rules),
        "2 in progress, Ray's delays": partial(OngoingRequests, *limits),
        "2 in progress, same delays": fast,
    }


def compare_fleets(
    fleet: Fleet,
    rules: ScalingRules,
    start_ms: float,
    traces: Mapping[int, Requests],
    until_ms: float,
    on_done: Callable[[], None] = lambda: None,
) -> dict[str, Trial]:
    """Fixed fleets of the least and the largest size, and those of `scalers`, which begin with the least."""
    fewest = max(1, rules.min_replicas)
    fleets = {f"{count}, fixed": replace(fleet, num_replicas=count) for count in (fewest, rules.max_replicas)}
    for name, scaler in scalers(rules).items():
        scaling = Scaling(scaler=scaler, until_ms=until_ms, start_ms=start_ms, window_s=rules.window_s)
        fleets[name] = replace(fleet, num_replicas=fewest, scaling=scaling)
    return {name: _try(one, traces, until_ms, on_done) for name, one in fleets.items()}


def _try(fleet: Fleet, traces: Mapping[int, Requests], until_ms: float, on_done: Callable[[], None]) -> Trial:
    scores, histories = {}, []
    for seed, requests in traces.items():
        outcome = simulate(fleet, requests, seed)
        history = outcome.history
        scores[seed] = FleetScore(
            answers=score(outcome),
            replica_seconds=history.replica_seconds(until_ms),
            changes=len(history.wishes),
            turns=history.turns,
        )
        histories.append(history)
        on_done()
    return Trial(scores, histories[0])


def render_fleets(title: str, trials: Mapping[str, Trial]) -> Table:
    """A line per fleet: means over seeds."""
    caption = (
        "Means over traces. Quality: R@1; of all, what was not met counts zero. Turns: from more to fewer or back."
    )
    table = Table(title=title, caption=caption)
    table.add_column("fleet", no_wrap=True)
    for column in ("met", "quality of met", "of all", "replica-seconds", "changes", "turns"):
        table.add_column(column, justify="right")
    for name, trial in trials.items():
        table.add_row(
            name,
            f"{trial.mean('attainment'):.1%}",
            f"{trial.mean('quality_met'):.3f}",
            f"{trial.mean('quality_all'):.3f}",
            f"{trial.mean('replica_seconds'):,.0f}",
            f"{trial.mean('changes'):.1f}",
            f"{trial.mean('turns'):.1f}",
        )
    return table


def plot_fleets(title: str, requests: Requests, trials: Mapping[str, Trial], until_ms: float) -> Figure:
    """Arrivals over time, and the replicas that each fleet had running for them (of the first seed)."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    arrivals, running = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    at_ms = np.linspace(0, until_ms, 400)
    counts, edges = np.histogram(requests.at_ms, bins=max(1, min(200, int(until_ms // 1000))), range=(0, until_ms))
    arrivals.stairs(1000 * counts / np.diff(edges), edges / 1000, color="grey", fill=True, alpha=0.4)
    arrivals.set_ylabel("requests/s")
    for name, trial in trials.items():
        style = {"linewidth": 2.5, "zorder": 3} if name == OURS else {"linewidth": 1.2}
        running.step(at_ms / 1000, trial.shown.running(at_ms), where="post", label=name, **style)
    running.set_ylabel("replicas running")
    running.set_xlabel("seconds")
    running.grid(alpha=0.25)
    arrivals.set_title(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
