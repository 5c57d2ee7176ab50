"""What `elastic top` shows: one interval of a server's life on a screen of a hundred columns. Pure."""

from math import isnan, nan

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from elastic.serve.observer import NOT_OURS, OUTCOMES
from elastic.serve.telemetry.snapshot import Interval, Snapshot

GOOD, FAIR = 0.99, 0.95
"""Attainment from which it is shown green, and yellow."""

STAGES = {
    "total": "elastic_request_duration_seconds",
    "decode": "elastic_preprocess_duration_seconds",
    "queue": "elastic_queue_duration_seconds",
    "compute": "elastic_compute_duration_seconds",
}
QUANTILES = (0.5, 0.9, 0.99)


def render(earlier: Snapshot, later: Snapshot, title: str) -> RenderableType:
    """What happened between two snapshots."""
    shown = Interval(earlier, later)
    sides = Table.grid(expand=True, padding=(0, 1))
    sides.add_column(ratio=1)
    sides.add_column(ratio=1)
    sides.add_row(
        Panel(_outcomes(shown), title="requests", title_align="left", border_style="dim"),
        Panel(_times(shown), title="milliseconds", title_align="left", border_style="dim"),
    )
    parts = [Panel(_headline(shown), title=title, title_align="left", border_style="cyan"), sides]
    submodels = _submodels(shown)
    parts.append(Panel(submodels, title="inputs by submodel", title_align="left", border_style="dim"))
    if len(later.started_s) > 1:
        parts.append(Panel(_replicas(shown), title="replicas", title_align="left", border_style="dim"))
    return Group(*parts)


def _headline(shown: Interval) -> Table:
    qualities = shown.qualities
    numbers = {
        "requests/s": Text(_number(shown.total("elastic_requests_total") / shown.seconds)),
        "attainment": _attainment(shown.attainment),
        f"{'/'.join(qualities)} R@1".strip(): Text(" / ".join(_fixed(it, 3) for it in qualities.values()) or "-"),
        "refused": Text(_percent(shown.refused_share), "" if shown.refused_share == 0 else "yellow"),
        "waiting": Text(f"{shown.gauge('elastic_waiting_inputs'):.0f}"),
        "replicas": Text(f"{len(shown.later.started_s)}", "" if shown.later.started_s else "bold red"),
    }
    table = Table.grid(expand=True)
    for _ in numbers:
        table.add_column(ratio=1, justify="center")
    for number in numbers.values():
        number.stylize("bold")
    table.add_row(*numbers.values())
    table.add_row(*(Text(name, "dim") for name in numbers))
    return table


def _outcomes(shown: Interval) -> Table:
    counts = shown.by("outcome", "elastic_requests_total")
    whole = sum(counts.values())
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(ratio=1)
    table.add_column(justify="right")
    for name in sorted(OUTCOMES, key=lambda name: name in NOT_OURS):
        if counts.get(name) or name in ("met", "late", "refused"):
            share = counts.get(name, 0.0) / whole if whole else nan
            colour = "green" if name == "met" else "dim" if name in NOT_OURS else "red"
            table.add_row(name, _number(counts.get(name, 0.0)), _bar(share, colour), _percent(share))
    return table


def _times(shown: Interval) -> Table:
    table = Table(expand=True, box=None, padding=(0, 1), header_style="dim")
    table.add_column("")
    for share in QUANTILES:
        table.add_column(f"p{100 * share:.0f}", justify="right", min_width=6)
    for stage, name in STAGES.items():
        table.add_row(stage, *(_ms(value) for value in shown.quantiles(name, QUANTILES)))
    # A large slack is good, so its tail is at the other end.
    slacks = shown.quantiles("elastic_slack_seconds", [1 - share for share in QUANTILES])
    table.add_row("slack left", *(Text(_ms(value), "red" if value < 0 else "") for value in slacks))
    ratios = shown.quantiles("elastic_prediction_ratio", QUANTILES)
    table.add_row(Text("time / predicted", "dim"), *(Text(_fixed(value, 2), "dim") for value in ratios))
    return table


def _submodels(shown: Interval) -> RenderableType:
    found = [item for item in shown.submodels() if item.num_inputs]
    if not found:
        return Text("nothing was computed", "dim")
    table = Table(expand=True, box=None, padding=(0, 1), header_style="dim")
    table.add_column("submodel")
    table.add_column("quality", justify="right")
    table.add_column("inputs", justify="right")
    table.add_column("", ratio=1)
    table.add_column("share", justify="right")
    for modality in dict.fromkeys(item.modality for item in found):
        own = [item for item in found if item.modality == modality]
        whole = sum(item.num_inputs for item in own)
        for item in own:
            share = item.num_inputs / whole
            name = f"{modality} {item.granularity}"
            table.add_row(name, _fixed(item.quality, 3), _number(item.num_inputs), _bar(share, "cyan"), _percent(share))
    table.caption = f"{_fixed(shown.mean_batch_size, 1)} inputs in a batch"
    return table


def _replicas(shown: Interval) -> Table:
    table = Table(expand=True, box=None, padding=(0, 1), header_style="dim")
    for name in ("replica", "requests/s", "attainment", "waiting", "up"):
        table.add_column(name, justify="right", ratio=1)
    for replica, started_s in sorted(shown.later.started_s.items()):
        table.add_row(
            replica,
            _number(shown.total("elastic_requests_total", replica=replica) / shown.seconds),
            _attainment(shown.attainment_of(replica=replica)),
            f"{shown.gauge('elastic_waiting_inputs', replica=replica):.0f}",
            duration(shown.later.at_s - started_s),
        )
    return table


def duration(seconds: float) -> str:
    """Short words for a time span."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} d"


def _attainment(value: float) -> Text:
    colour = "dim" if isnan(value) else "green" if value >= GOOD else "yellow" if value >= FAIR else "red"
    return Text(_percent(value), colour)


def _bar(share: float, colour: str) -> ProgressBar:
    done = 0.0 if isnan(share) else share
    return ProgressBar(total=1.0, completed=done, complete_style=colour, finished_style=colour)


def _percent(share: float) -> str:
    return "-" if isnan(share) else f"{100 * share:.1f} %"


def _fixed(value: float, digits: int) -> str:
    return "-" if isnan(value) else f"{value:.{digits}f}"


def _ms(seconds: float) -> str:
    return "-" if isnan(seconds) else f"{1000 * seconds:.3g}" if abs(seconds) < 1 else f"{1000 * seconds:.0f}"


def _number(value: float) -> str:
    """Three digits below a hundred, whole from there on."""
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
