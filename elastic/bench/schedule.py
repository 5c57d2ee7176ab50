"""When requests are sent and what each asks for, drawn from a seed."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from elastic.errors import ConfigError
from elastic.simulate.trace import poisson


def warmed_up(
    at_ms: Float[np.ndarray, " request"], duration_ms: float, warmup_ms: float, rng: np.random.Generator
) -> Float[np.ndarray, " more"]:
    """The same arrivals later, after a Poisson stream of their mean rate for `warmup_ms`."""
    if warmup_ms == 0:
        return at_ms
    return np.concatenate([poisson(1000 * len(at_ms) / duration_ms, warmup_ms, rng), warmup_ms + at_ms])


def mix(
    values: Sequence[float], weights: Sequence[float], count: int, rng: np.random.Generator
) -> Float[np.ndarray, " request"]:
    """`count` of the values, each drawn alone in proportion to its weight; without weights, all are as likely.

    Raises:
        ConfigError: no values, not a weight for each, or no positive weight.
    """
    if not values or min(values) <= 0:
        raise ConfigError("latency_slo_ms", tuple(values), "needs at least one objective, all positive")
    if weights and (len(weights) != len(values) or min(weights) < 0 or sum(weights) == 0):
        raise ConfigError("slo_weights", tuple(weights), f"needs {len(values)} weights, none negative, not all zero")
    shares = np.array(weights or [1.0] * len(values), np.float64)
    return rng.choice(np.array(values, np.float64), size=count, p=shares / shares.sum())
