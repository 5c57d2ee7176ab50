"""What a run reports: `metrics.jsonl` first, TensorBoard second.

Names are `<objective>/<term>/<granularity>`, so one objective's submodels stand together. Values stay on the device
until they are logged: a step that is not logged never waits for the device.
"""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from elastic.errors import CheckpointError

FILE = "metrics.jsonl"
"""One JSON object a line, in the order of steps; `step` counts finished updates."""


class MetricMeans:
    """Means of named scalars since they were last taken; a name counts only where it was added."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Take in one step's scalars without a device synchronisation."""
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.detach().float()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> tuple[list[str], Tensor]:
        """The names, sorted, and their means in that order; starts over."""
        names = sorted(self._sums)
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        self._sums, self._counts = {}, {}
        return names, means


class MetricLog:
    """Appends records to a run directory."""

    def __init__(self, run_dir: Path, first_step: int) -> None:
        """Continue after `first_step`: later records, of steps that will be taken again, are dropped."""
        drop_records_after(run_dir, first_step)
        self._file = (run_dir / FILE).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record the values at a step; on disk when this returns."""
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> "MetricLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The records of a run, in the order of steps; a last line cut short by a crash is left out.

    Raises:
        CheckpointError: the run has no metrics.
    """
    path = run_dir / FILE
    if not path.exists():
        raise CheckpointError(str(path), "no metrics were written", "train the run first")
    return _whole_lines(path.read_text(encoding="utf-8"))


def _whole_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def drop_records_after(run_dir: Path, step: int) -> None:
    """Forget the records of steps that a resumed run takes again, and a line that a crash cut short."""
    path = run_dir / FILE
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    kept = "".join(json.dumps(record) + "\n" for record in _whole_lines(text) if record["step"] <= step)
    if kept != text:
        rewritten = path.with_suffix(".tmp")
        rewritten.write_text(kept, encoding="utf-8")
        rewritten.replace(path)


class MetricTail:
    """Follows the metrics of a run that another process writes, and writes anew when it drops records."""

    def __init__(self, run_dir: Path) -> None:
        """Start at the end of what is already there."""
        self._path = run_dir / FILE
        self._file_id, self._offset = 0, 0
        if self._path.exists():
            status = self._path.stat()
            self._file_id, self._offset = status.st_ino, status.st_size

    def poll(self) -> list[dict[str, Any]]:
        """The records that were completed since the last call; all of them, if the file is another one."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file_id = os.fstat(file.fileno()).st_ino
            if file_id != self._file_id:
                self._file_id, self._offset = file_id, 0
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return _whole_lines((whole + newline).decode())
