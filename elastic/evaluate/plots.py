"""Three pictures of an evaluation: quality against compute, quality against width, and who can search whose index."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elastic.evaluate.result import BASELINE_LABELS, Evaluation
from elastic.profile.flops import count_image
from elastic.profile.tables import MEAN
from elastic.submodel import Submodel

_DPI = 140
_GREY = "0.45"
_MIX_COLOR = "tab:orange"
_LEAST_CONTRAST = 0.1
"""Least R@1 between the darkest and the brightest colour, so that noise does not look like structure."""


def write_plots(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Draw every plot as PNG into `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {
        "quality_vs_flops": quality_vs_flops(evaluation),
        "quality_vs_embed_dim": quality_vs_embed_dim(evaluation),
        "compatibility": compatibility(evaluation),
    }
    paths = []
    for name, figure in drawn.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=_DPI)
        paths.append(path)
    return paths


def quality_vs_flops(evaluation: Evaluation) -> Figure:
    """R@1 of granularities and Mix'n'Match points over MFLOPs, at full width."""
    space = evaluation.config.space
    figure, axes = _figure(7.5, 4.8)
    uniform = list(space.granularities.values())
    mixed = [submodel for submodel in space.mixes() if not submodel.is_uniform]
    axes.plot(*_curve(evaluation, uniform), "-", color="black", linewidth=1.2, zorder=2)
    axes.plot(
        *_curve(evaluation, mixed), "o", color=_MIX_COLOR, markersize=5, zorder=3, label="Mix'n'Match, never trained"
    )
    for (name, submodel), color in zip(space.granularities.items(), shades(len(uniform)), strict=True):
        x, y = _mflops(evaluation, submodel), evaluation.value(submodel)
        axes.plot(x, y, "o", color=color, markersize=11, zorder=4)
        axes.annotate(f"{name} {y:.3f}", (x, y), xytext=(0, 17), textcoords="offset points", ha="center", weight="bold")
    errors = [evaluation.standard_error(submodel) for submodel in uniform]
    axes.errorbar(*_curve(evaluation, uniform), yerr=errors, fmt="none", color="black", capsize=3, zorder=3)
    smallest, full = uniform[0], uniform[-1]
    kept = evaluation.value(smallest) / max(evaluation.value(full), 1e-9)
    cost = _mflops(evaluation, smallest) / _mflops(evaluation, full)
    first, last = space.name(smallest), space.name(full)
    axes.set_title(f"{first} keeps {kept:.0%} of {last}'s R@1 at {cost:.0%} of its FLOPs")
    axes.set_xlabel("MFLOPs per image (two per multiply-accumulate)")
    axes.plot([], [], "-o", color="black", label="granularities, trained (bars: standard error)")
    _baselines(axes, evaluation)
    _finish(figure, axes)
    return figure


def quality_vs_embed_dim(evaluation: Evaluation) -> Figure:
    """R@1 over the embedding width, a line per granularity."""
    space = evaluation.config.space
    figure, axes = _figure(7.5, 4.8)
    for (name, submodel), color in zip(space.granularities.items(), shades(len(space.ffn_dims)), strict=True):
        values = [evaluation.value(submodel, submodel, width) for width in space.embed_dims]
        axes.plot(
            space.embed_dims, values, "o-", color=color, label=f"{name}  {values[-1]:.3f} at {space.full_embed_dim}"
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(space.embed_dims, [str(width) for width in space.embed_dims])
    axes.minorticks_off()
    axes.set_xlabel("embed_dim: leading coordinates kept of queries and index")
    narrow = evaluation.value(space.full, space.full, space.embed_dims[0]) / max(evaluation.value(space.full), 1e-9)
    share = f"{space.embed_dims[0]} of {space.full_embed_dim} coordinates keep {narrow:.0%}"
    axes.set_title(f"{share} of {space.name(space.full)}'s R@1")
    _baselines(axes, evaluation)
    _finish(figure, axes)
    return figure


def compatibility(evaluation: Evaluation) -> Figure:
    """R@1 of every query granularity against every index granularity, at the full and at the smallest width."""
    space = evaluation.config.space
    names, submodels = list(space.granularities), list(space.granularities.values())
    widths = sorted({space.full_embed_dim, space.embed_dims[0]}, reverse=True)
    grids = [np.array([[evaluation.value(q, i, width) for i in submodels] for q in submodels]) for width in widths]
    figure = Figure(figsize=(4.6 * len(widths) + 0.8, 4.6), layout="constrained")
    high = max(grid.max() for grid in grids)
    low = min(high - _LEAST_CONTRAST, *(grid.min() for grid in grids))
    for position, (grid, width) in enumerate(zip(grids, widths, strict=True)):
        axes = figure.add_subplot(1, len(widths), position + 1)
        axes.imshow(grid, cmap="viridis", vmin=low, vmax=high)
        for (row, column), value in np.ndenumerate(grid):
            bright = value > (low + high) / 2
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", color="black" if bright else "white")
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("index embedded by")
        axes.set_ylabel("query embedded by")
        axes.set_title(f"embed_dim {width}")
    figure.suptitle("R@1 when queries and index are embedded by different submodels")
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def _curve(evaluation: Evaluation, submodels: Sequence[Submodel]) -> tuple[list[float], list[float]]:
    return [_mflops(evaluation, s) for s in submodels], [evaluation.value(s) for s in submodels]


def _mflops(evaluation: Evaluation, submodel: Submodel) -> float:
    return count_image(evaluation.config, submodel).flops / 1e6


def shades(count: int) -> list[tuple[float, float, float, float]]:
    """Colours that darken with the size of the submodel."""
    return [colormaps["viridis_r"](0.15 + 0.75 * i / max(count - 1, 1)) for i in range(count)]


def _baselines(axes: Axes, evaluation: Evaluation) -> None:
    """A dashed line at each baseline's R@1, labelled at its right end; chance is too low to share an axis."""
    for name, scores in evaluation.baselines.items():
        if name == "chance":
            continue
        value = scores[MEAN].recall_at_1
        axes.axhline(value, color=_GREY, linestyle="--", linewidth=1, zorder=1)
        axes.annotate(
            f"{BASELINE_LABELS[name]} {value:.3f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 3),
            textcoords="offset points",
            ha="right",
            color=_GREY,
            fontsize=8,
        )


def _finish(figure: Figure, axes: Axes) -> None:
    axes.set_ylabel("R@1, merged index, mean over domains")
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0), high + 0.15 * (high - low))  # room for the labels above the points
    axes.margins(x=0.08)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
