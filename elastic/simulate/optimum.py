"""The best that any policy could have done, knowing every arrival and every time beforehand.

What SuperServe (NSDI 2025) states as an integer program, solved exactly by dynamic programming: when deadlines come in
the order of arrivals, some best schedule serves what it serves in that order, in batches of neighbours. Proof by
exchange: a request that is left out inside a batch can take the place of the batch's first, whose deadline is no later,
and the batch still begins after its last arrival.
"""

import numpy as np
from jaxtyping import Float

from elastic.errors import ConfigError
from elastic.serve.batching import Front

Schedules = Float[np.ndarray, "_ 2"]
"""Schedules of some first requests: when the model is free, and the quality that was answered in all."""


def best_quality(front: Front, at_ms: Float[np.ndarray, " request"], slo_ms: Float[np.ndarray, " request"]) -> float:
    """The largest mean quality over all requests on one replica whose batches take exactly the front's times.

    What is not met counts zero, as in `compare.Score.quality_all`. Meant for some hundred requests.

    Raises:
        ConfigError: deadlines do not come in the order of arrivals.
    """
    due_ms = at_ms + slo_ms
    if (np.diff(at_ms) < 0).any() or (np.diff(due_ms) < 0).any():
        raise ConfigError("slo_ms", slo_ms.tolist(), "deadlines have to come in the order of arrivals")
    count = len(at_ms)
    schedules: list[list[Schedules]] = [[] for _ in range(count + 1)]
    schedules[0] = [np.zeros((1, 2))]
    for done in range(count):
        best = _undominated(np.concatenate(schedules[done]))
        schedules[done] = []
        schedules[done + 1].append(best)  # the next request is left out
        for size in range(1, min(front.max_batch_size, count - done) + 1):
            if at_ms[done + size - 1] >= due_ms[done]:
                break
            start_ms = np.maximum(best[:, 0], at_ms[done + size - 1])
            for level in front.levels:
                more = np.stack([start_ms + level.batch_ms[size - 1], best[:, 1] + size * level.full_quality], axis=1)
                schedules[done + size].append(more[more[:, 0] <= due_ms[done]])
    return float(np.concatenate(schedules[count])[:, 1].max()) / count


def _undominated(schedules: Schedules) -> Schedules:
    """Those that none beats in being free earlier and in quality."""
    ordered = schedules[np.lexsort((-schedules[:, 1], schedules[:, 0]))]
    before = np.maximum.accumulate(np.concatenate([[-np.inf], ordered[:-1, 1]]))
    return ordered[ordered[:, 1] > before]
