"""The end of a window of steps: its record, whether the run diverged, and whether it was asked to stop."""

import math
from pathlib import Path
from typing import Any

from elastic.errors import ConfigError
from elastic.train.optim import OptimConfig, learning_rate_at
from elastic.train.window import Window, rank

STOP_FILE = "stop"
"""Its presence in the run directory asks the workers to save a checkpoint and return."""


def end_window(
    window: Window[Any], run_dir: Path, optim: OptimConfig, *, step: int, steps: int, **extra: float
) -> tuple[dict[str, float], bool]:
    """The window's record after `step` of `steps` updates, and whether the run is to stop, on all workers alike.

    The stop request rides on the record's exchange between workers, so asking costs nothing and nobody is left
    waiting for a worker that has stopped. `extra` scalars are averaged over workers.

    Raises:
        ConfigError: the loss is no longer finite.
    """
    asked = rank() == 0 and (run_dir / STOP_FILE).exists()
    record = window.close(stop=float(asked), **extra)
    stopping = record.pop("stop") > 0
    record["learning_rate"] = learning_rate_at(step - 1, steps, optim)
    if not math.isfinite(record["loss"]) or not math.isfinite(record["grad_norm"]):
        rule = f"the loss is {record['loss']} before step {step}: training diverged; lower the rate"
        raise ConfigError("optim.learning_rate", optim.learning_rate, rule)
    return record, stopping
