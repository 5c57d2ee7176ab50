"""The report of `elastic probe`: one table, its widths, one picture. Every number is read from the result."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elastic.evaluate.plots import shades
from elastic.evaluate.probe_result import METRIC_KINDS, ProbeMetric, Probes
from elastic.evaluate.report import markdown_table, provenance_section

PROBES_REPORT = "probes.md"
PROBES_PLOT = "probes.png"
UNTRAINED = "untrained"
"""What fresh weights are called in tables and legends."""

_DPI = 140
_GREY = "0.45"
_COLUMNS = 4  # panels beside each other
_LEGEND_COLUMNS = 3  # entries that fit below one panel
_LEAST_TOP = 0.05
"""Least value at the top of a panel, so that noise near chance does not look like structure."""


def write_probes_report(path: Path, probes: Probes, plot: Path) -> None:
    """Write the report; `plot` is linked relative to its folder."""
    sections = [
        _header(probes),
        _summary(probes),
        f"![quality by width]({plot.relative_to(path.parent)})",
        *(_widths(probes, metric) for metric in probes.scales if METRIC_KINDS[metric].by_width),
        _not_measured(probes),
        provenance_section(probes.provenance),
    ]
    path.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")


def write_probes_plot(folder: Path, probes: Probes) -> Path:
    """Draw the plot as PNG into `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    draw(probes).savefig(folder / PROBES_PLOT, dpi=_DPI)
    return folder / PROBES_PLOT


def summarise(probes: Probes) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the one table: every metric, its comparisons, each granularity, the narrowest embedding."""
    space = probes.space
    full, narrow = space.full, space.embed_dims[0]
    has_widths = len(space.embed_dims) > 1
    fresh = [UNTRAINED] if probes.untrained else []
    narrowest = [f"{space.name(full)} at {narrow}"] if has_widths else []
    header = ["", "floor", *fresh, *space.granularities, *narrowest, "error"]
    rows = []
    for metric, scale in probes.scales.items():
        kind, error = METRIC_KINDS[metric], probes.standard_error(metric, full)
        values = [scale.floor, *(probes.untrained_value(metric) for _ in fresh)]
        values += [probes.value(metric, submodel) for submodel in space.granularities.values()]
        row = [kind.label, *(f"{value:.3f}" for value in values)]
        if has_widths:
            row.append(f"{probes.value(metric, full, narrow):.3f}" if kind.by_width else "")
        rows.append([*row, "" if error is None else f"{error:.3f}"])
    return header, rows


def explain(probes: Probes) -> str:
    """What the columns of the table mean."""
    space = probes.space
    floors: dict[str, list[str]] = {}
    for metric in probes.scales:
        floors.setdefault(METRIC_KINDS[metric].floor, []).append(METRIC_KINDS[metric].label)
    common, *special = floors.items()
    floor = "; ".join([common[0], *(f"{name} for {' and '.join(labels)}" for name, labels in special)])
    largest = space.name(space.full)
    fresh = f" Untrained: {largest} of a model of the same shape with fresh weights." if probes.untrained else ""
    return (
        f"Embeddings at their full width of {space.full_embed_dim}. Floor: {floor}.{fresh} Error: standard error of "
        f"the share that {largest} got right; smaller differences say little."
    )


def _header(probes: Probes) -> str:
    tested = probes.num_images[probes.split]
    others = [f"{count:,} of `{split}`" for split, count in probes.num_images.items() if split != probes.split]
    facts = (
        f"Source `{probes.source}`, domains {', '.join(f'`{name}`' for name in probes.domains)}: {tested:,} images of "
        f"split `{probes.split}` are tested."
    )
    if others:
        facts += f" Read beside them: {', '.join(others)}; everything is fitted on `train`."
    if probes.max_images in probes.num_images.values():
        facts += f" No more than {probes.max_images:,} images of a split are read."
    if "linear_top1" in probes.scales:
        facts += " `val` chooses the weight decay of the linear probe of classes."
    if "zero_shot_top1" in probes.scales:
        facts += f" Zero-shot calls a class by its {probes.class_names}."
    if "synthetic_caption_to_image" in probes.scales:
        facts += (
            f" Synthetic captions and images find each other by the embedding of `{probes.synthetic_caption_token}`."
        )
    if any(not METRIC_KINDS[metric].by_width for metric in probes.scales):
        facts += f" Linear probes read `{probes.token}`, those of pixels the patch tokens too."
    return f"# Probes of `{probes.run_name}`\n\n{facts} The protocols are those of docs/evaluation.md."


def _summary(probes: Probes) -> str:
    header, rows = summarise(probes)
    tested = [_over(probes, metric) for metric in probes.scales]
    table = markdown_table([*header, "over"], [[*row, over] for row, over in zip(rows, tested, strict=True)])
    return f"## In one table\n\n{explain(probes)}\n\n{table}"


def _over(probes: Probes, metric: ProbeMetric) -> str:
    """What was judged, and how many answers there were to choose from."""
    kind, scale = METRIC_KINDS[metric], probes.scales[metric]
    choices = "" if scale.num_choices is None else f", {scale.num_choices:,} {kind.choices}"
    return f"{scale.num_tested:,} {kind.tested}{choices}"


def _widths(probes: Probes, metric: ProbeMetric) -> str:
    space = probes.space
    rows = [
        [f"**{name}**", *(f"{probes.value(metric, submodel, width):.3f}" for width in space.embed_dims)]
        for name, submodel in space.granularities.items()
    ]
    if probes.untrained:
        rows.insert(0, [UNTRAINED, *(f"{probes.untrained_value(metric, width):.3f}" for width in space.embed_dims)])
    kind, floor = METRIC_KINDS[metric], probes.scales[metric].floor
    title = kind.label[0].upper() + kind.label[1:]
    table = markdown_table(["", *(str(width) for width in space.embed_dims)], rows)
    return f"## {title}\n\nBy granularity and width; {kind.floor} reaches {floor:.3f}.\n\n{table}"


def _not_measured(probes: Probes) -> str:
    lines = [f"- {task}: {reason}" for task, reason in probes.not_measured.items()]
    return "## Not measured\n\n" + "\n".join(lines) if lines else ""


def draw(probes: Probes) -> Figure:
    """One panel per metric: lines over the width, or bars where there is one width."""
    metrics = list(probes.scales)
    columns = min(_COLUMNS, len(metrics))
    num_rows = -(-len(metrics) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.9 * num_rows + 0.5), layout="constrained")
    for place, metric in enumerate(metrics):
        axes = figure.add_subplot(num_rows, columns, place + 1)
        (_lines if METRIC_KINDS[metric].by_width else _bars)(axes, probes, metric)
        _compare(axes, probes, metric)
        _finish(axes, probes, metric)
    handles = {name: line for axes in figure.axes for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    across = min(len(handles), _LEGEND_COLUMNS * columns)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=across, frameon=False)
    largest = probes.space.name(probes.space.full)
    title = f"{probes.run_name} on {probes.source}/{probes.split} (whiskers: standard error of {largest})"
    figure.suptitle(title, wrap=True)
    return figure


def _lines(axes: Axes, probes: Probes, metric: ProbeMetric) -> None:
    space = probes.space
    for (name, submodel), color in zip(space.granularities.items(), shades(len(space.ffn_dims)), strict=True):
        values = [probes.value(metric, submodel, width) for width in space.embed_dims]
        axes.plot(space.embed_dims, values, "o-", color=color, markersize=4, label=name)
        if submodel == space.full:
            errors = [probes.standard_error(metric, submodel, width) or 0.0 for width in space.embed_dims]
            axes.errorbar(space.embed_dims, values, yerr=errors, fmt="none", color=color, capsize=2, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(space.embed_dims, [str(width) for width in space.embed_dims])
    axes.minorticks_off()
    axes.set_xlabel("embed_dim")


def _bars(axes: Axes, probes: Probes, metric: ProbeMetric) -> None:
    space = probes.space
    values = {name: probes.value(metric, submodel) for name, submodel in space.granularities.items()}
    # Numbers stand below the bars, where no line crosses them; slim bars let the lines be seen between them.
    labels = [f"{name}\n{value:.3f}" for name, value in values.items()]
    axes.bar(labels, list(values.values()), width=0.6, color=shades(len(values)))


def _compare(axes: Axes, probes: Probes, metric: ProbeMetric) -> None:
    """What the metric's numbers are to be compared with."""
    axes.axhline(probes.scales[metric].floor, color=_GREY, linestyle="--", linewidth=1, label="floor")
    if not probes.untrained:
        return
    if METRIC_KINDS[metric].by_width:
        widths = probes.space.embed_dims
        values = [probes.untrained_value(metric, width) for width in widths]
        axes.plot(widths, values, ":", color=_GREY, linewidth=1, label=UNTRAINED)
    else:
        axes.axhline(probes.untrained_value(metric), color=_GREY, linestyle=":", linewidth=1, label=UNTRAINED)


def _finish(axes: Axes, probes: Probes, metric: ProbeMetric) -> None:
    kind, floor = METRIC_KINDS[metric], probes.scales[metric].floor
    axes.set_title(f"{kind.label}\n{kind.floor} {floor:.3f}", fontsize=10)
    axes.set_ylim(0, max(1.1 * axes.get_ylim()[1], 1.2 * floor, _LEAST_TOP))
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
