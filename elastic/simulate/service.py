"""How long a simulated model takes: draws from what was measured."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from elastic.profile.tables import LatencyRow, LatencyTable, Modality
from elastic.serve.batching import Front
from elastic.submodel import Submodel

_QUANTILES = np.array([0.0, 0.5, 0.9, 0.99, 1.0])


class Times(ABC):
    """Says how long a batch takes."""

    @abstractmethod
    def draw(self, modality: Modality, level: int, batch_size: int, luck: float) -> float:
        """Milliseconds of one batch; `luck` is a uniform draw from [0, 1)."""


class PredictedTimes(Times):
    """Exactly as the policy predicts without corrections: nothing goes wrong."""

    def __init__(self, fronts: Mapping[Modality, Front]) -> None:
        self._fronts = fronts

    def draw(self, modality: Modality, level: int, batch_size: int, luck: float) -> float:
        """The front's time."""
        return self._fronts[modality].levels[level].batch_ms[batch_size - 1]


class SlowerTimes(Times):
    """Other times, all longer by one factor: a model that shares its cores with a server."""

    def __init__(self, times: Times, factor: float) -> None:
        self._times, self._factor = times, factor

    def draw(self, modality: Modality, level: int, batch_size: int, luck: float) -> float:
        """The other's time, longer."""
        return self._factor * self._times.draw(modality, level, batch_size, luck)


class MeasuredTimes(Times):
    """Random times of batches, with the measured minimum, median, p90, p99 and maximum, and straight lines between.

    Batch sizes between measured ones are interpolated. The policy sees one quantile of the same table, so it can be as
    wrong here as it is there.
    """

    def __init__(self, fronts: Mapping[Modality, Front], table: LatencyTable) -> None:
        """Times of every level of the fronts; all of them are in the table, which has one dtype and thread count."""
        self._times = {
            (modality, number): _by_size(table, modality, level.submodel, len(level.batch_ms))
            for modality, front in fronts.items()
            for number, level in enumerate(front.levels)
        }

    def draw(self, modality: Modality, level: int, batch_size: int, luck: float) -> float:
        """The quantile of this luck."""
        return float(np.interp(luck, _QUANTILES, self._times[modality, level][batch_size - 1]))


def _by_size(
    table: LatencyTable, modality: Modality, submodel: Submodel, max_size: int
) -> Float[np.ndarray, "size quantile"]:
    rows = sorted(
        (row for row in table.rows if (row.modality, row.submodel) == (modality, submodel)),
        key=lambda row: row.batch_size,
    )
    sizes = [row.batch_size for row in rows]
    measured = np.array([_quantiles(row) for row in rows])
    wanted = np.arange(1, max_size + 1)
    return np.stack([np.interp(wanted, sizes, column) for column in measured.T], axis=1)


def _quantiles(row: LatencyRow) -> list[float]:
    return [row.min_ms, row.p50_ms, row.p90_ms, row.p99_ms, row.max_ms]
