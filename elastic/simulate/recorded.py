"""Arrivals that were recorded: files in the formats in which traces are published, fitted to a load.

Published evaluations keep the shape of a trace and change its scale, because the trace comes from a larger or smaller
system than the one under test. Where every arrival is known, a run of consecutive ones is taken and its time is
compressed (`rescale`). Where only amounts per minute are known, a day of them is compressed and arrivals are drawn
from it (`Curve`): within a step they are independent, so bursts shorter than a step are not in it.

Formats of the Azure files: github.com/Azure/AzurePublicDataset.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from jaxtyping import Float, Int

from elastic.errors import ConfigError, DataError

MINUTE_MS = 60_000.0
DAY_MS = 1440 * MINUTE_MS

_MINUTES = tuple(str(minute) for minute in range(1, 1441))
_MOST_HEADER_BYTES = 1 << 16
_ADVICE = "compare it with the formats in docs/simulation.md"


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """A trace of which every arrival is known, in ascending milliseconds."""

    at_ms: Float[np.ndarray, " arrival"]

    def draw(self, rate: float, duration_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " request"]:
        """Consecutive arrivals, in the time and at the rate that are asked for."""
        return rescale(self.at_ms, rate, duration_ms, rng)


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A trace of which amounts in steps of equal length are known; their proportions matter, their unit does not."""

    amounts: Float[np.ndarray, " step"]
    step_ms: float

    def draw(self, rate: float, duration_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " request"]:
        """A Poisson process whose rate follows a day of the curve, or all of a shorter one; `rate` is that day's mean.

        Raises:
            ConfigError: nothing happened on that day.
        """
        steps = min(len(self.amounts), round(DAY_MS / self.step_ms))
        first = rng.integers(len(self.amounts) - steps + 1)
        day = self.amounts[first : first + steps]
        if not day.any():
            raise ConfigError("trace", f"step {first} to {first + steps}", "nothing arrives in this part of the trace")
        return spread(rng.poisson(day * (rate * duration_ms / 1000 / day.sum())), duration_ms / steps, rng)


Trace: TypeAlias = Points | Curve


def rescale(
    at_ms: Float[np.ndarray, " arrival"], rate: float, duration_ms: float, rng: np.random.Generator
) -> Float[np.ndarray, " request"]:
    """Consecutive arrivals from a random place, moved to begin at 0 and end at the duration.

    They are as many as the rate and the duration ask for, and gaps keep their proportions.

    Raises:
        ConfigError: fewer than two are asked for, or more than there are, or all of them arrive at once.
    """
    count = round(rate * duration_ms / 1000)
    if not 2 <= count <= len(at_ms):
        rule = f"for {duration_ms / 1000:g} s asks for {count} arrivals; this trace has 2 to {len(at_ms)} to give"
        raise ConfigError("rate", rate, rule)
    first = rng.integers(len(at_ms) - count + 1)
    since_ms = at_ms[first : first + count] - at_ms[first]
    if since_ms[-1] == 0:
        raise ConfigError("rate", rate, f"takes {count} arrivals of this trace, which all come at once; raise it")
    return since_ms / since_ms[-1] * duration_ms


def spread(counts: Int[np.ndarray, " step"], step_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " arrival"]:
    """As many arrivals in each step as counted, independent and uniform within it, ascending."""
    return np.sort(step_ms * (np.repeat(np.arange(len(counts)), counts) + rng.random(counts.sum())))


def read_offsets(path: Path) -> Float[np.ndarray, " arrival"]:
    """Arrivals in milliseconds from a file with one a line; blank lines and those that begin with # are left out.

    Raises:
        DataError: unreadable, empty, or a line that is no number, is negative, or comes before the one above it.
    """
    advice = "write the milliseconds from the beginning to each request, ascending, one a line"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        values = [float(line) for line in lines if line.strip() and not line.lstrip().startswith("#")]
    except (OSError, ValueError) as error:
        raise DataError(str(path), f"holds no arrivals ({error})", advice) from error
    at_ms = np.array(values)
    if len(at_ms) == 0 or not (np.isfinite(at_ms).all() and (np.diff(at_ms, prepend=0.0) >= 0).all()):
        raise DataError(str(path), "is empty, or its lines do not ascend from 0", advice)
    return at_ms


def read_counts(path: Path) -> Float[np.ndarray, " minute"]:
    """Invocations in each minute of a day, of all functions together (Azure Functions 2019)."""
    table = _columns(path, dict.fromkeys(_MINUTES, pa.float64()))
    counts = np.array([column.to_numpy().sum() for column in table.select(_MINUTES).columns])
    if not (np.isfinite(counts).all() and counts.min() >= 0):
        raise DataError(str(path), "counts less than nothing in some minute", _ADVICE)
    return counts


def read_invocations(path: Path) -> Float[np.ndarray, " arrival"]:
    """Arrivals from end and duration in seconds (Azure Functions 2021), in milliseconds after the first."""
    table = _columns(path, {"end_timestamp": pa.float64(), "duration": pa.float64()})
    began_s = table["end_timestamp"].to_numpy() - table["duration"].to_numpy()
    if not np.isfinite(began_s).all():
        raise DataError(str(path), "holds an end or a duration that is not finite", _ADVICE)
    return np.sort(began_s - began_s.min()) * 1000


def read_timestamps(path: Path) -> Float[np.ndarray, " arrival"]:
    """Arrivals from ISO 8601 times with up to nine decimals (Azure LLM and LMM inference), as `read_invocations`."""
    text = _columns(path, {"TIMESTAMP": pa.string()})["TIMESTAMP"]
    # Arrow reads times with an offset into a zoned type only, and times without one into a plain type only.
    zone = "UTC" if re.search(r"(Z|[+-]\d\d:?\d\d)$", text[0].as_py()) else None
    try:
        at_ns = pc.cast(text, pa.timestamp("ns", zone)).cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(str(path), f"holds a TIMESTAMP that is none ({error})", _ADVICE) from error
    return np.sort(at_ns - at_ns.min()) / 1e6


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file, known by the columns of its header."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Path], Trace]


FORMATS = (
    Format(
        name="Azure Functions 2019",
        columns=("HashOwner", "HashApp", "HashFunction", "Trigger", *_MINUTES),
        read=lambda path: Curve(read_counts(path), MINUTE_MS),
    ),
    Format(
        name="Azure Functions 2021",
        columns=("app", "func", "end_timestamp", "duration"),
        read=lambda path: Points(read_invocations(path)),
    ),
    Format(name="Azure LLM or LMM", columns=("TIMESTAMP",), read=lambda path: Points(read_timestamps(path))),
)


def read_trace(path: Path) -> Trace:
    """The trace in a file, whose format its first line tells.

    Raises:
        DataError: unreadable, of no known format, or with a value that its format does not allow.
    """
    header = _first_line(path)
    if re.fullmatch(r"[-+.\deE]+|nan|inf", header):
        return Points(read_offsets(path))
    columns = {column.strip().strip('"') for column in header.split(",")}
    for one in FORMATS:
        if columns.issuperset(one.columns):
            return one.read(path)
    known = "; ".join(f"{one.name} ({_shortened(','.join(one.columns))})" for one in FORMATS)
    found = f"begins with {_shortened(header)!r}, which is no known format"
    raise DataError(str(path), found, f"known are: a number of milliseconds a line; {known}")


def _first_line(path: Path) -> str:
    """The first line that says something."""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            text = stream.read(_MOST_HEADER_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error})", "check the path") from error
    lines = (line.strip() for line in text.splitlines())
    return next((line for line in lines if line and not line.startswith("#")), "")


def _columns(path: Path, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Some columns of a CSV file, all of them filled."""
    convert = pyarrow.csv.ConvertOptions(include_columns=list(types), column_types=types)
    try:
        table = pyarrow.csv.read_csv(path, convert_options=convert)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(str(path), f"cannot be read ({error})", _ADVICE) from error
    if len(table) == 0 or any(column.null_count for column in table.columns):
        raise DataError(str(path), "is empty, or misses values", _ADVICE)
    return table


def _shortened(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
