"""The simulated part: every policy on several shapes and loads, and on small instances against the optimum."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context

import numpy as np

from elastic.serve.batching import Front
from elastic.serve.policies.registry import policy_maker
from elastic.simulate.compare import compare, score
from elastic.simulate.fleet import Fleet, Requests, simulate
from elastic.simulate.optimum import best_quality
from elastic.simulate.service import PredictedTimes
from elastic.simulate.trace import draw

SLO_MULTIPLE = 4.0
"""The objective over the time of one input at the largest submodel, as `elastic simulate` chooses it."""
SMALL_OBJECTIVES = 8.0
"""Length of an instance whose optimum is computed, in objectives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Policies on one shape of arrivals at one load."""

    shape: str
    load: float
    """Over what the largest submodel can serve in its largest batches."""
    policies: Sequence[str]
    seeds: int
    duration_s: float


def capacity(front: Front) -> float:
    """Inputs per second of the largest submodel in its largest batches."""
    return 1000 * front.max_batch_size / front.levels[-1].batch_ms[-1]


def objective_ms(front: Front) -> float:
    """Of every request."""
    return SLO_MULTIPLE * front.levels[-1].batch_ms[0]


def run_all(fleet: Fleet, cells: Sequence[Cell], on_done: Callable[[], None]) -> list[dict[str, object]]:
    """Every cell, two at a time; each row holds a cell, a policy and its scores by seed."""
    found: list[dict[str, object]] = []
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        # A policy at a time, so that decisions are timed by processes that do the same.
        jobs = [pool.submit(_run, fleet, replace(cell, policies=[name])) for cell in cells for name in cell.policies]
        for job in as_completed(jobs):
            found += job.result()
            on_done()
    return found


def _run(fleet: Fleet, cell: Cell) -> list[dict[str, object]]:
    front = fleet.fronts["image"]
    rate, slo_ms = fleet.num_replicas * cell.load * capacity(front), objective_ms(front)
    traces = {seed: _requests(cell.shape, rate, 1000 * cell.duration_s, slo_ms, seed) for seed in range(cell.seeds)}
    scores = compare(fleet, cell.policies, traces)
    return [
        {"shape": cell.shape, "load": cell.load, "policy": name, "seed": seed, **asdict(one)}
        for name, by_seed in scores.items()
        for seed, one in by_seed.items()
    ]


def against_optimum(
    fronts: Mapping[str, Front], policies: Sequence[str], load: float, seeds: int
) -> Iterator[dict[str, object]]:
    """Quality over all requests as a share of the best possible, on traces short enough to solve exactly.

    Here times are exactly as predicted, for the policies as for the optimum.
    """
    front = fronts["image"]
    slo_ms = objective_ms(front)
    for seed in range(seeds):
        requests = _requests("bursty", load * capacity(front), SMALL_OBJECTIVES * slo_ms, slo_ms, seed)
        best = best_quality(front, requests.at_ms, requests.slo_ms)
        for name in policies:
            fleet = Fleet(fronts=fronts, times=PredictedTimes(fronts), policy=policy_maker(name, fronts))  # type: ignore[arg-type]
            found = score(simulate(fleet, requests)).quality_all
            yield {"load": load, "policy": name, "seed": seed, "of_optimum": found / best}


def _requests(shape: str, rate: float, duration_ms: float, slo_ms: float, seed: int) -> Requests:
    at_ms = draw(shape, rate, duration_ms, seed)
    return Requests(at_ms=at_ms, slo_ms=np.full(len(at_ms), slo_ms))
