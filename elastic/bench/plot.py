"""A picture of a load: latency over time, who answered over time, and the share answered within every latency."""

import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elastic.bench.load import Outcome, Samples

NUM_BINS = 40
"""Stretches of time that the mix is counted in."""
MAX_SUBMODELS = 8
"""With a colour of their own; the rarest are one."""
OTHERS = "others"
_BAD = {Outcome.REFUSED: "0.75", Outcome.EXPIRED: "0.55", Outcome.UNANSWERED: "0.35", Outcome.FAILED: "tab:red"}
Colour = str | tuple[float, float, float, float]


def plot(title: str, samples: Samples) -> Figure:
    """The three panels of a load."""
    figure = Figure(figsize=(10, 11), layout="constrained")
    latency, mix, cdf = figure.subplots(3, height_ratios=(3, 2, 2))
    names = _names(samples)
    draw_latency(latency, samples, names)
    draw_mix(mix, samples, names)
    draw_cdf(cdf, samples)
    latency.sharex(mix)
    figure.suptitle(title, fontsize=11)
    for axes in (latency, mix, cdf):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_latency(axes: Axes, samples: Samples, names: dict[str, Colour]) -> None:
    """A point per request at its intended time: answers by submodel, refusals and failures in grey and red."""
    at_s = samples.intended_ms / 1000
    called = _called(samples, names)
    for name, colour in names.items():
        chosen = called == name
        axes.plot(at_s[chosen], samples.latency_ms[chosen], ".", markersize=3, color=colour)
    for slo_ms in np.unique(samples.slo_ms).tolist():
        axes.axhline(slo_ms, color="black", linestyle="--", linewidth=1)
        axes.annotate(f"{slo_ms:g} ms", (1, slo_ms), xycoords=("axes fraction", "data"), va="bottom", ha="right")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("ms from the intended time")
    axes.set_title("Every request: dashed, its objective; colours as below", fontsize=10, loc="left")
    axes.grid(alpha=0.25)


def draw_mix(axes: Axes, samples: Samples, names: dict[str, Colour]) -> None:
    """Shares of the requests of each moment, by the submodel that answered or what became of them instead."""
    edges = np.linspace(samples.begin_ms, samples.end_ms, NUM_BINS + 1)
    called = _called(samples, names)
    counts = {name: _count(samples.intended_ms, called == name, edges) for name in names}
    total = np.maximum(1, sum(counts.values(), np.zeros(NUM_BINS, np.int64)))
    below = np.zeros(NUM_BINS)
    for name, colour in names.items():
        share = counts[name] / total
        overall = float((called == name).mean())
        axes.bar(edges[:-1] / 1000, share, np.diff(edges) / 1000, below, align="edge", color=colour,
                 label=f"{name} {overall:.1%}")  # fmt: skip
        below += share
    axes.set_ylim(0, 1)
    axes.set_xlim(samples.begin_ms / 1000, samples.end_ms / 1000)
    axes.set_xlabel("seconds since the load began")
    axes.set_ylabel("share of requests")
    axes.set_title("Who answered, ascending in quality, or what became of the request", fontsize=10, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)


def draw_cdf(axes: Axes, samples: Samples) -> None:
    """Of each objective's requests, the share answered within a latency; a curve that ends below 1 lost the rest."""
    slos = np.unique(samples.slo_ms).tolist()
    for place, slo_ms in enumerate(slos):
        chosen = samples.slo_ms == slo_ms
        latency_ms = np.sort(samples.latency_ms[chosen & samples.answered])
        colour = colormaps["plasma"](0.1 + 0.75 * place / max(len(slos) - 1, 1))
        share = np.arange(1, len(latency_ms) + 1) / chosen.sum()
        met = float(samples.met[chosen].mean())
        axes.step(latency_ms, share, where="post", color=colour, label=f"{slo_ms:g} ms: {met:.1%} met")
        axes.axvline(slo_ms, color=colour, linestyle="--", linewidth=1)
    axes.set_ylim(0, 1.02)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("ms from the intended time to the answer")
    axes.set_ylabel("share of all requests")
    axes.set_title("Answered within; dashed, the objective", fontsize=10, loc="left")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    axes.grid(alpha=0.25)


def _names(samples: Samples) -> dict[str, Colour]:
    """What a request can be called, with its colour: submodels ascending in mean quality, then what went wrong."""
    answered = samples.granularity[samples.answered]
    found, counts = np.unique(answered, return_counts=True)
    frequent = found[np.argsort(-counts, kind="stable")][:MAX_SUBMODELS].tolist()
    quality = {name: float(samples.quality[samples.granularity == name].mean()) for name in frequent}
    ranked = sorted(frequent, key=lambda name: quality[name])
    colours = [colormaps["viridis_r"](0.1 + 0.85 * place / max(len(ranked) - 1, 1)) for place in range(len(ranked))]
    names: dict[str, Colour] = dict(zip(ranked, colours, strict=True))
    if len(found) > MAX_SUBMODELS:
        names[OTHERS] = "tab:orange"
    return names | {outcome.value: colour for outcome, colour in _BAD.items() if (samples.outcome == outcome).any()}


def _called(samples: Samples, names: dict[str, Colour]) -> np.ndarray:
    """The name of every request: its submodel's, or its outcome."""
    submodels = np.where(np.isin(samples.granularity, list(names)), samples.granularity, OTHERS)
    return np.where(samples.answered, submodels, samples.outcome)


def _count(
    at_ms: Float[np.ndarray, " request"], chosen: Bool[np.ndarray, " request"], edges: Float[np.ndarray, " edge"]
) -> Int[np.ndarray, " bin"]:
    return np.histogram(at_ms[chosen], bins=edges)[0]
