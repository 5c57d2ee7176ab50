"""Tables and the plot of a comparison."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from elastic.serve.policies.registry import SERVED

Row = Mapping[str, Any]
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Two-sided 95 % quantiles of Student's t by the number of seeds."""


def values(rows: Iterable[Row], name: str, **where: object) -> np.ndarray:
    """One value per seed."""
    return np.array([row[name] for row in rows if all(row[key] == value for key, value in where.items())], float)


def estimate(found: np.ndarray, scale: float = 1.0, digits: int = 1) -> str:
    """Mean and 95 % interval over seeds."""
    known = found[~np.isnan(found)]
    if not len(known):
        return "-"
    text = f"{scale * known.mean():.{digits}f}"
    if len(known) < 2:
        return text
    half = T_95.get(len(known), 2.0) * known.std(ddof=1) / np.sqrt(len(known))
    return f"{text} \u00b1 {scale * half:.{digits}f}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is a name."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def simulated_table(rows: Sequence[Row], shape: str, load: float) -> str:
    """A line per policy."""
    lines = []
    for policy in unique(rows, "policy"):
        cell = {"shape": shape, "load": load, "policy": policy}
        lines.append(
            [
                f"`{policy}`",
                estimate(values(rows, "attainment", **cell), 100),
                estimate(values(rows, "quality_met", **cell), 1, 4),
                estimate(values(rows, "quality_all", **cell), 1, 3),
                estimate(values(rows, "refused", **cell), 100),
                estimate(values(rows, "kept", **cell), 100),
                f"{values(rows, 'mean_batch', **cell).mean():.1f}",
                " / ".join(f"{values(rows, f'decision_{name}_us', **cell).mean():.0f}" for name in ("p50", "p99")),
            ]
        )
    head = [
        "policy",
        "met, %",
        "R@1 of met",
        "of all",
        "refused, %",
        "kept of accepted, %",
        "batch",
        "decision, us: p50 / p99",
    ]
    return markdown(head, lines)


def live_table(rows: Sequence[Row], rate: float) -> str:
    """A line per policy, as the client saw it."""
    lines = []
    for policy in unique(rows, "policy"):
        cell = {"rate": rate, "policy": policy}
        refusal = values(rows, "refusal_p50_ms", **cell), values(rows, "refusal_p99_ms", **cell)
        lines.append(
            [
                f"`{policy}`",
                estimate(values(rows, "attainment", **cell), 100),
                estimate(values(rows, "quality_met", **cell), 1, 4),
                estimate(values(rows, "quality_all", **cell), 1, 3),
                estimate(values(rows, "refused", **cell), 100),
                estimate(values(rows, "kept", **cell), 100),
                f"{values(rows, 'mean_batch', **cell).mean():.1f}",
                " / ".join("-" if np.isnan(part).all() else f"{np.nanmedian(part):.1f}" for part in refusal),
            ]
        )
    head = [
        "policy",
        "met, %",
        "R@1 of met",
        "of all",
        "refused, %",
        "kept of accepted, %",
        "batch",
        "refusal, ms: p50 / p99",
    ]
    return markdown(head, lines)


def calibration_table(live: Sequence[Row], simulated: Sequence[Row], rate: float) -> str:
    """The simulator minus the server, per policy, paired by seed."""
    lines = []
    for policy in unique(live, "policy"):
        cell = {"rate": rate, "policy": policy}

        def both(name: str, cell: Mapping[str, object] = cell) -> tuple[np.ndarray, np.ndarray]:
            return values(simulated, name, **cell), values(live, name, **cell)

        row = [f"`{policy}`"]
        for name, scale, digits in (
            ("attainment", 100, 1),
            ("quality_met", 1, 4),
            ("refused", 100, 1),
            ("mean_batch", 1, 1),
        ):
            guessed, seen = both(name)
            row += [f"{scale * np.nanmean(seen):.{digits}f}", estimate(guessed - seen, scale, digits)]
        lines.append(row)
    head = ["policy"]
    for name in ("met, %", "R@1 of met", "refused, %", "batch"):
        head += [f"live: {name}", "simulated - live"]
    return markdown(head, lines)


def optimum_table(rows: Sequence[Row]) -> str:
    """Share of the best possible quality over all, per load."""
    loads = unique(rows, "load")
    lines = [
        [f"`{policy}`", *(estimate(values(rows, "of_optimum", load=load, policy=policy), 100) for load in loads)]
        for policy in unique(rows, "policy")
    ]
    return markdown(["policy", *(f"load {load:g}" for load in loads)], lines)


def unique(rows: Iterable[Row], name: str) -> list[Any]:
    """Values in the order of their first row."""
    return list(dict.fromkeys(row[name] for row in rows))


def pareto(panels: Mapping[str, Sequence[Row]], columns: int) -> Figure:
    """Met against the quality of what was met, one panel per load and shape; up and to the right is better."""
    num_rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * num_rows + 0.8), layout="constrained")
    policies = unique((row for rows in panels.values() for row in rows), "policy")  # not all are in every panel
    for number, (title, rows) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(num_rows, columns, number)
        for policy in unique(rows, "policy"):
            met, quality = (values(rows, name, policy=policy) for name in ("attainment", "quality_met"))
            axes.errorbar(
                100 * met.mean(),
                np.nanmean(quality),
                xerr=100 * met.std(),
                yerr=np.nanstd(quality),
                fmt="*" if policy == SERVED else "o",
                markersize=15 if policy == SERVED else 6,
                zorder=3 if policy == SERVED else 2,
                capsize=2,
                color=f"C{policies.index(policy)}",
                label=policy if number == 1 else None,
            )
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.25)
        axes.set_xlim(-2, 102)
    figure.supxlabel("met within the objective, % of all requests", fontsize=10)
    figure.supylabel("mean R@1 of what was met", fontsize=10)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure
