"""Files in published formats give the arrivals that stand in them, and fitting them to a load keeps their shape."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from elastic.errors import ConfigError, DataError
from elastic.simulate.recorded import (
    DAY_MS,
    MINUTE_MS,
    Curve,
    Points,
    read_counts,
    read_invocations,
    read_offsets,
    read_timestamps,
    read_trace,
    rescale,
    spread,
)

MINUTES = ",".join(str(minute) for minute in range(1, 1441))
COUNTS = f"HashOwner,HashApp,HashFunction,Trigger,{MINUTES}\n"
INVOCATIONS = "app,func,end_timestamp,duration\n"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def written(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8")
    return path


def counted(*minutes: int) -> str:
    """The fields of a day whose first minutes are these and whose others are empty."""
    return ",".join(str(count) for count in (*minutes, *[0] * (1440 - len(minutes))))


@pytest.fixture
def uneven() -> np.ndarray:
    return np.cumsum(rng(9).lognormal(sigma=2, size=500))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rate", "duration_ms"), [(100.0, 2_000.0), (0.5, 60_000.0), (3.0, 999.0), (500.0, 1000.0)])
def test_a_fitted_trace_has_the_count_and_the_span_asked_for(
    uneven: np.ndarray, rate: float, duration_ms: float, seed: int
):
    found = rescale(uneven, rate, duration_ms, rng(seed))
    assert (len(found), found[0], found[-1]) == (round(rate * duration_ms / 1000), 0.0, duration_ms)


@pytest.mark.parametrize("seed", range(5))
def test_a_fitted_trace_is_a_run_of_the_original_with_every_gap_in_proportion(uneven: np.ndarray, seed: int):
    gaps = np.diff(rescale(uneven, 50, 2_000, rng(seed)))
    windows = np.lib.stride_tricks.sliding_window_view(np.diff(uneven), 99)
    ratios = windows / gaps
    assert (np.ptp(ratios, axis=1) < 1e-6 * ratios.mean(axis=1)).sum() == 1


def test_another_seed_takes_another_part(uneven: np.ndarray):
    assert len({tuple(np.round(rescale(uneven, 50, 2_000, rng(seed)), 3)) for seed in range(20)}) > 15


def test_the_whole_trace_can_be_asked_for(uneven: np.ndarray):
    whole = (uneven - uneven[0]) / (uneven[-1] - uneven[0]) * 1000
    np.testing.assert_allclose(rescale(uneven, 500, 1000, rng()), whole)


@pytest.mark.parametrize(("rate", "problem"), [(501, "2 to 500"), (1, "2 to 500")])
def test_no_more_is_given_than_was_recorded(uneven: np.ndarray, rate: float, problem: str):
    with pytest.raises(ConfigError, match=problem):
        rescale(uneven, rate, 1000, rng())


def test_arrivals_that_come_at_once_are_not_stretched():
    with pytest.raises(ConfigError, match="at once"):
        rescale(np.full(10, 3.0), 5, 1000, rng())


def test_counts_are_spread_within_their_steps():
    found = spread(np.array([2, 0, 3]), 100.0, rng())
    assert (np.diff(found) >= 0).all()
    assert (found // 100).astype(int).tolist() == [0, 0, 2, 2, 2]


def test_within_a_step_arrivals_are_uniform():
    found = spread(np.array([0, 40_000]), 50.0, rng())
    assert (found.mean(), found.std()) == pytest.approx((75.0, 50 / 12**0.5), rel=0.01)


def test_arrivals_follow_a_curve_at_the_mean_rate():
    found = Curve(np.array([1.0, 0.0, 3.0]), MINUTE_MS).draw(1000, 60_000, rng())
    counts = np.histogram(found, bins=3, range=(0, 60_000))[0]
    assert counts[1] == 0
    assert (counts[0], counts[2]) == pytest.approx((15_000, 45_000), rel=0.03)


def test_counts_along_a_flat_curve_vary_as_a_poisson_process_does():
    counts = [len(Curve(np.ones(4), MINUTE_MS).draw(10, 10_000, rng(seed))) for seed in range(500)]
    assert np.var(counts) / np.mean(counts) == pytest.approx(1, abs=0.2)


def test_of_a_longer_curve_each_seed_draws_another_day():
    two_days = np.zeros(48)
    two_days[23:25] = 1
    curve = Curve(two_days, DAY_MS / 24)
    hours = [np.unique(curve.draw(200, 1000, rng(seed)) * 24 // 1000) for seed in range(60)]
    assert all(np.ptp(one) <= 1 for one in hours)
    assert len({one[0] for one in hours}) > 15


def test_a_day_without_anything_is_refused():
    with pytest.raises(ConfigError, match="nothing arrives"):
        Curve(np.zeros(3), MINUTE_MS).draw(1, 1000, rng())


def test_offsets_may_have_remarks(tmp_path: Path):
    path = written(tmp_path, "# recorded on Monday\n0\n\n12.5\n  12.5\n1e3\n")
    assert read_offsets(path).tolist() == [0.0, 12.5, 12.5, 1000.0]


@pytest.mark.parametrize("text", ["", "# nothing\n", "1\nsoon\n", "5\n4\n", "-1\n", "nan\n", "1\ninf\n"])
def test_offsets_that_are_none_are_refused(text: str, tmp_path: Path):
    with pytest.raises(DataError, match="one a line"):
        read_offsets(written(tmp_path, text))


def test_counts_of_functions_are_summed_by_minute(tmp_path: Path):
    path = written(tmp_path, f"{COUNTS}o,a,f,http,{counted(2, 0, 1)}\no,a,g,timer,{counted(1, 0, 4)}\n")
    found = read_counts(path)
    assert (found[:4].tolist(), len(found)) == ([3.0, 0.0, 5.0, 0.0], 1440)


def test_an_invocation_began_its_duration_before_its_end(tmp_path: Path):
    path = written(tmp_path, f"{INVOCATIONS}a,f,10.5,0.5\na,g,10.75,3.25\nb,f,9.0,1.0\n")
    assert read_invocations(path).tolist() == [0.0, 500.0, 2500.0]


@pytest.mark.parametrize(
    ("times", "at_ms"),
    [
        (("2023-11-16 18:17:03.9799600", "2023-11-16 18:17:04.0319600"), [0.0, 52.0]),
        (("2024-05-12 00:00:00.001163+00:00", "2024-05-12 00:00:00+00:00"), [0.0, 1.163]),
        (("2024-10-15T12:00:00.269Z", "2024-10-15T12:01:00.270Z"), [0.0, 60_001.0]),
        (("2024-10-15 23:59:59.9999999", "2024-10-16 00:00:00.0000001"), [0.0, 0.0002]),
    ],
)
def test_timestamps_count_from_the_first_whatever_their_decimals_and_zone(
    times: tuple[str, str], at_ms: list[float], tmp_path: Path
):
    path = written(tmp_path, "TIMESTAMP,NumImages,ContextTokens\n" + "".join(f"{time},1,2\n" for time in times))
    assert read_timestamps(path) == pytest.approx(np.array(at_ms))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("# a remark\n\n0\n12.5\n", Points),
        (f"{INVOCATIONS}a,f,10.5,0.5\n", Points),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n", Points),
        (f"{COUNTS}o,a,f,http,{counted(1)}\n", Curve),
    ],
    ids=["offsets", "invocations", "timestamps", "counts"],
)
def test_the_first_line_tells_the_format(text: str, kind: type, tmp_path: Path):
    assert isinstance(read_trace(written(tmp_path, text)), kind)


def test_a_packed_file_is_read_as_it_is(tmp_path: Path):
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(gzip.compress(b"TIMESTAMP,NumImages\n2024-10-15T12:00:00.5Z,1\n2024-10-15T12:00:01Z,0\n"))
    trace = read_trace(path)
    assert isinstance(trace, Points) and trace.at_ms.tolist() == [0.0, 500.0]


@pytest.mark.parametrize("text", ["", "time,user\n1,2\n", "1,2,3\n", f"app,func,duration,{MINUTES}\n"])
def test_an_unknown_format_is_told_with_the_known_ones(text: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"begins with .* milliseconds a line; .*2019.*end_timestamp.*TIMESTAMP"):
        read_trace(written(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        f"{INVOCATIONS}a,f,10.5,soon\n",
        f"{INVOCATIONS}a,f,10.5\n",
        f"{INVOCATIONS}a,f,10.5,nan\n",
        f"{INVOCATIONS}a,f,inf,0.5\n",
        INVOCATIONS,
        f"{COUNTS}o,a,f,http,{counted(-1)}\n",
        f"{COUNTS}o,a,f,http,{counted(1)[:-1]}\n",
        "TIMESTAMP,NumImages\nyesterday,1\n",
        "TIMESTAMP,NumImages\n2024-10-15T12:00:00Z,1\n2024-10-15T12:00:00,1\n",
    ],
)
def test_a_value_that_the_format_does_not_allow_is_refused(text: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"trace\.csv.*formats"):
        read_trace(written(tmp_path, text))


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(DataError):
        read_offsets(tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_trace(tmp_path / "none.txt")
