"""Drawn times are those that were measured."""

import numpy as np
import pytest

from elastic.profile.provenance import Device, Provenance
from elastic.profile.tables import LatencyRow, LatencyTable
from elastic.serve.batching import Front, Level
from elastic.simulate.service import MeasuredTimes, PredictedTimes, SlowerTimes
from elastic.submodel import Submodel

SMALL = Submodel((1,))
FRONTS = {"image": Front((Level(SMALL, "S", (4.0, 5.0, 6.0), {8: 0.5}),))}


def table() -> LatencyTable:
    rows = [
        LatencyRow(
            device="here", dtype="float32", num_threads=1, modality="image", submodel=SMALL, batch_size=size, n=99,
            mean_ms=0.0, min_ms=scale, p50_ms=2 * scale, p90_ms=4 * scale, p99_ms=8 * scale, max_ms=10 * scale,
        )
        for size, scale in ((1, 1.0), (3, 2.0))
    ]  # fmt: skip
    return LatencyTable(rows, Provenance(device=Device("cpu", 1, "AVX2"), commit="", command=""))


@pytest.mark.parametrize(("luck", "ms"), [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (0.9, 4.0), (0.99, 8.0)])
def test_luck_picks_the_quantile(luck: float, ms: float):
    assert MeasuredTimes(FRONTS, table()).draw("image", 0, 1, luck) == pytest.approx(ms)


def test_batch_sizes_between_measured_ones_are_interpolated():
    times = MeasuredTimes(FRONTS, table())
    assert [times.draw("image", 0, size, 0.5) for size in (1, 2, 3)] == [2.0, 3.0, 4.0]


def test_many_draws_have_the_measured_quantiles():
    times, rng = MeasuredTimes(FRONTS, table()), np.random.default_rng(0)
    drawn = [times.draw("image", 0, 1, luck) for luck in rng.random(3000).tolist()]
    assert np.percentile(drawn, [50, 90]) == pytest.approx([2.0, 4.0], rel=0.1)


def test_predicted_times_are_the_fronts():
    assert [PredictedTimes(FRONTS).draw("image", 0, size, 0.7) for size in (1, 2, 3)] == [4.0, 5.0, 6.0]


def test_slower_times_are_longer_by_their_factor():
    assert SlowerTimes(PredictedTimes(FRONTS), 1.5).draw("image", 0, 2, luck=0.3) == 7.5
