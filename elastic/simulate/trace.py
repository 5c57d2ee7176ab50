"""When requests arrive: seeded generators of the shapes that servers are judged on, and what was really drawn.

The generators here are synthetic and say so; what was recorded elsewhere comes from `recorded` and `packaged`. Sources:
poisson, bursty (a Poisson stream with a gamma renewal stream on top) and accelerating are the three shapes of
SuperServe's evaluation (NSDI 2025, arXiv 2312.16733); gamma renewals of squared coefficient of variation c have shape
1/c and mean 1/rate. Merging and cutting make a drawn trace less bursty than its parameters sound, so `Traffic`
measures it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from elastic.errors import ConfigError
from elastic.simulate.packaged import UTILISATION, flights, follow
from elastic.simulate.recorded import Trace

WINDOW_MS = 100.0
"""Windows that peaks and the index of dispersion are counted in."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a trace is like."""

    requests: int
    rate: float
    """Requests per second."""
    cv2: float
    """Squared coefficient of variation of the gaps between arrivals; 1 for a Poisson process."""
    dispersion: float
    """Variance over mean of the counts in windows; 1 for a Poisson process."""
    peak_to_mean: float
    """Fullest window over the mean one."""


def describe(at_ms: Float[np.ndarray, " request"], duration_ms: float) -> Traffic:
    """Measure a trace."""
    gaps = np.diff(at_ms)
    counts = np.histogram(at_ms, bins=max(1, math.ceil(duration_ms / WINDOW_MS)))[0]
    mean = counts.mean()
    return Traffic(
        requests=len(at_ms),
        rate=1000 * len(at_ms) / duration_ms,
        cv2=float(gaps.var() / gaps.mean() ** 2) if len(gaps) > 1 else math.nan,
        dispersion=float(counts.var() / mean) if mean else math.nan,
        peak_to_mean=float(counts.max() / mean) if mean else math.nan,
    )


def poisson(rate: float, duration_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " request"]:
    """Steady: independent arrivals."""
    return gamma(rate, 1.0, duration_ms, rng)


def gamma(rate: float, cv2: float, duration_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " request"]:
    """A renewal process whose gaps have this squared coefficient of variation."""
    return _renewals(cv2, rate * duration_ms / 1000, rng) * 1000 / rate


def bursty(rate: float, duration_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " request"]:
    """A quarter of the rate steadily, three quarters in bursts (gamma renewals of cv2 8)."""
    steady = poisson(rate / 4, duration_ms, rng)
    return np.sort(np.concatenate([steady, gamma(rate * 3 / 4, 8.0, duration_ms, rng)]))


def accelerating(rate: float, duration_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " request"]:
    """The rate rises in a straight line from a half of `rate` to three halves, with gaps of cv2 2 at any moment."""
    return ramp(rate / 2, 3 * rate / 2, 2.0, duration_ms, rng)


def ramp(
    first: float, last: float, cv2: float, duration_ms: float, rng: np.random.Generator
) -> Float[np.ndarray, " request"]:
    """A renewal process of unit rate, mapped through the inverse of the cumulated rate."""
    seconds = duration_ms / 1000
    unit = _renewals(cv2, (first + last) / 2 * seconds, rng)
    slope = (last - first) / seconds
    if slope == 0:
        return 1000 * unit / first
    return 1000 * (np.sqrt(first**2 + 2 * slope * unit) - first) / slope


def diurnal(rate: float, duration_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " request"]:
    """A day: from a tenth of `rate` up to 1.9 times and back along a cosine, with gaps of cv2 2 at any moment."""
    at_ms = np.linspace(0, duration_ms, 1001)
    phase = 2 * np.pi * at_ms / duration_ms
    return _following(rate * (1 - 0.9 * np.cos(phase)), at_ms, 2.0, rng)


def step(rate: float, duration_ms: float, rng: np.random.Generator) -> Float[np.ndarray, " request"]:
    """A third of the time at twice the rate, between two thirds at half of it; gaps of cv2 2 at any moment."""
    third = duration_ms / 3
    at_ms = np.array([0.0, third, third, 2 * third, 2 * third, duration_ms])
    return _following(rate * np.array([0.5, 0.5, 2.0, 2.0, 0.5, 0.5]), at_ms, 2.0, rng)


Shape: TypeAlias = Literal[
    "poisson", "bursty", "accelerating", "diurnal", "step", "flights", "alibaba2018", "azure_v2", "google2019"
]
"""A name that `draw` knows."""

SHAPES: Mapping[str, Callable[[float, float, np.random.Generator], Float[np.ndarray, " request"]]] = {
    "poisson": poisson,
    "bursty": bursty,
    "accelerating": accelerating,
    "diurnal": diurnal,
    "step": step,
    "flights": flights,
    **{cluster: partial(follow, cluster) for cluster in UTILISATION},
}
"""Arrivals in milliseconds by shape, from the mean rate per second, the duration and a generator."""


def draw(shape: str | Trace, rate: float, duration_ms: float, seed: int) -> Float[np.ndarray, " request"]:
    """Arrivals of a shape or a trace, ascending, all within the duration; of a recording, the seed picks the part.

    Raises:
        ConfigError: no such shape, no traffic, or more of it than was recorded.
    """
    if isinstance(shape, str) and shape not in SHAPES:
        raise ConfigError("shape", shape, f"must be one of {', '.join(SHAPES)}")
    if rate <= 0 or duration_ms <= 0:
        raise ConfigError("rate", rate, "and the duration must be positive")
    make = SHAPES[shape] if isinstance(shape, str) else shape.draw
    return make(rate, duration_ms, np.random.default_rng(seed))


def _following(
    rates: Float[np.ndarray, " knot"], at_ms: Float[np.ndarray, " knot"], cv2: float, rng: np.random.Generator
) -> Float[np.ndarray, " request"]:
    """A renewal process of unit rate, mapped through the inverse of the cumulated rate between knots."""
    expected = np.concatenate([[0.0], np.cumsum((rates[1:] + rates[:-1]) / 2 * np.diff(at_ms) / 1000)])
    return np.interp(_renewals(cv2, float(expected[-1]), rng), expected, at_ms)


def _renewals(cv2: float, until: float, rng: np.random.Generator) -> Float[np.ndarray, " arrival"]:
    """Arrivals of a renewal process of rate 1, cut at `until`."""
    times = np.empty(0)
    start = 0.0
    while start <= until:
        count = 64 + int(1.2 * (until - start))
        more = start + np.cumsum(rng.gamma(1 / cv2, cv2, size=count))
        times, start = np.concatenate([times, more]), float(more[-1])
    return times[times <= until]
