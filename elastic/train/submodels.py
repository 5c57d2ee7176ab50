"""Which submodels a training step computes: MatFormer's objective is a loop over what `at` returns.

The draw is a pure function of (seed, step), so all data-parallel ranks and all micro-batches of a step agree
without communication, and a resumed run draws what the uninterrupted one would have. Sources: MatFormer
(arXiv 2310.07707) section 3 for `sample` (one granularity per step) and `all` (the joint objective of its first
version); US-Nets (arXiv 1903.05134) for `sandwich`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from elastic.errors import ConfigError
from elastic.submodel import Space, Submodel
from elastic.train.seeding import derive_seed

Policy = Literal["all", "sandwich", "anchored", "sample"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SubmodelSampling:
    """How many forward and backward passes a step makes, and at which granularities."""

    policy: Policy = "sample"
    """all: every granularity; sandwich: the largest, the smallest and k others; anchored: the largest and k others;
    sample: k granularities."""
    k: int = 1
    """How many granularities are drawn, without repeats, from those that the policy does not fix."""
    probabilities: tuple[float, ...] = ()
    """Chance of each granularity, smallest first, renormalised over those that can be drawn; empty means equal.
    MatFormer table 6 found .17/.20/.22/.41 to favour the largest at little cost to the smallest."""

    def __post_init__(self) -> None:
        if self.k < (1 if self.policy == "sample" else 0):
            raise ConfigError("submodels.k", self.k, f"is too small for the policy {self.policy!r}")
        if any(p < 0 for p in self.probabilities):
            raise ConfigError("submodels.probabilities", self.probabilities, "must not be negative")
        if self.probabilities and abs(sum(self.probabilities) - 1) > 1e-6:
            raise ConfigError("submodels.probabilities", self.probabilities, "must sum to 1")

    def check(self, space: Space) -> None:
        """Accept a space whose granularities this sampling can draw.

        Raises:
            ConfigError: another number of probabilities than granularities, or fewer granularities than `k` asks.
        """
        count = len(space.ffn_dims)
        if self.probabilities and len(self.probabilities) != count:
            rule = f"needs one probability for each of the {count} granularities"
            raise ConfigError("submodels.probabilities", self.probabilities, rule)
        drawable = [i for i in range(count) if i not in self.fixed(count)]
        possible = sum(self.weight(i) > 0 for i in drawable)
        if self.policy != "all" and self.k > possible:
            rule = f"only {possible} granularities can be drawn under the policy {self.policy!r}"
            raise ConfigError("submodels.k", self.k, rule)

    def fixed(self, count: int) -> tuple[int, ...]:
        """Positions, ascending in size, that every step trains when there are `count` granularities."""
        match self.policy:
            case "all":
                return tuple(range(count))
            case "sandwich":
                return tuple(sorted({0, count - 1}))
            case "anchored":
                return (count - 1,)
            case "sample":
                return ()

    def weight(self, index: int) -> float:
        """Unnormalised chance of one granularity."""
        return self.probabilities[index] if self.probabilities else 1.0


class SubmodelSampler:
    """The submodels of each step, largest first; the same on every rank."""

    def __init__(self, space: Space, sampling: SubmodelSampling, seed: int) -> None:
        sampling.check(space)
        self._sampling = sampling
        self._seed = seed
        self._submodels = tuple(space.granularities.values())

    def at(self, step: int) -> tuple[Submodel, ...]:
        """What `step` trains, without repeats."""
        count = len(self._submodels)
        chosen = set(self._sampling.fixed(count)) | self._drawn(step)
        return tuple(self._submodels[i] for i in sorted(chosen, reverse=True))

    def _drawn(self, step: int) -> set[int]:
        sampling, count = self._sampling, len(self._submodels)
        drawable = [i for i in range(count) if i not in sampling.fixed(count)]
        if not drawable or sampling.k == 0:
            return set()
        weights = np.array([sampling.weight(i) for i in drawable])
        rng = np.random.default_rng(derive_seed(self._seed, "submodels", step))
        return set(rng.choice(drawable, size=sampling.k, replace=False, p=weights / weights.sum()).tolist())
