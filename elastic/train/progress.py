"""What a person watching a run sees: a live panel on a terminal, plain lines anywhere else.

It reads the records that the workers write to the run directory, so it costs the training step nothing.
"""

import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Record = Mapping[str, Any]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, without leading units that are zero: `1h02m`, `3m05s`, `9s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def summary(record: Record, steps: int) -> str:
    """One line: step, loss, speed, the share of time spent waiting for data, time left."""
    left = (steps - record["step"]) * record["step_s"]
    speed = next(name for name in record if name.endswith("_per_s"))
    return (
        f"step {record['step']}/{steps}  loss {record['loss']:.4f}  "
        f"{record[speed]:.0f} {speed.removesuffix('_per_s')}/s  "
        f"data wait {record['data_wait_fraction']:.1%}  lr {record['learning_rate']:.2e}  ETA {duration(left)}"
    )


def split_terms(record: Record) -> dict[str, dict[str, float]]:
    """Values of `<objective>/<term>/<granularity>` names: term -> granularity -> value; those of single widths, which
    have an `@`, are left to the log."""
    terms: dict[str, dict[str, float]] = {}
    for name, value in record.items():
        term, slash, granularity = name.rpartition("/")
        if slash and "@" not in term:
            terms.setdefault(term, {})[granularity] = value
    return terms


class Progress:
    """Shows records as they come; a context manager because a live panel must be taken down."""

    def __init__(self, steps: int, granularities: tuple[str, ...], console: Console | None = None) -> None:
        self._steps = steps
        self._granularities = granularities
        self._console = console or Console(file=sys.stderr)
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._latest: dict[str, Any] = {}
        """The last value seen of every name: a sampled granularity is not in every record."""
        self.note("starting")

    def note(self, text: str) -> None:
        """Say what the run is doing when it is not taking steps."""
        if self._live is None:
            self._console.print(text, highlight=False)
        else:
            self._live.update(Text(text, style="dim"), refresh=True)

    def warn(self, text: str) -> None:
        """Say something that stays on the screen, above the panel."""
        self._console.print(f"warning: {text}", style="yellow", highlight=False, soft_wrap=True)

    def show(self, record: Record) -> None:
        """Show the newest state of the run."""
        self._latest |= record
        if self._live is None:
            self._console.print(summary(record, self._steps), highlight=False, soft_wrap=True)
        else:
            self._live.update(self._panel(record))

    def _panel(self, record: Record) -> RenderableType:
        bar = Padding(ProgressBar(total=self._steps, completed=record["step"]))  # alone, it ends no line
        return Group(bar, Text(summary(record, self._steps)), self._table())

    def _table(self) -> Table:
        table = Table("term", *self._granularities, box=None, header_style="bold")
        for term, values in sorted(split_terms(self._latest).items()):
            cells = (f"{values[name]:.4f}" if name in values else "" for name in self._granularities)
            table.add_row(term, *cells)
        return table

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
