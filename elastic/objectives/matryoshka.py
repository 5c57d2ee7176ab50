"""Matryoshka representation learning: the same objective at several prefixes of one embedding.

Source: MRL (arXiv 2205.13147) section 3. Deviation: the mean over widths where MRL takes the sum, so that an
objective keeps its weight against others whatever the number of widths. Each prefix is cut before any
normalisation; the inner objective normalises what it is given.
"""

from dataclasses import dataclass

import torch

from elastic.batch import Batch, Passes, PassName
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms


@dataclass(frozen=True, kw_only=True, slots=True)
class Matryoshka(ObjectiveConfig):
    """Trains every width of `embed_dims` to be an embedding of its own."""

    inner: ObjectiveConfig
    """The objective that each width is trained with; parameters (temperature, prototypes) are shared."""
    embed_dims: tuple[int, ...]
    """Trained widths, ascending; the last is the whole embedding."""
    width_weights: tuple[float, ...] | None = None
    """Relative weight of each width in the mean (MRL's c_m); equal if left out."""

    def __post_init__(self) -> None:
        ObjectiveConfig.__post_init__(self)
        dims, weights = self.embed_dims, self.width_weights
        if not dims or min(dims) < 1 or list(dims) != sorted(set(dims)):
            raise ConfigError("embed_dims", dims, "must be positive, ascending and without repeats")
        if weights is not None and (len(weights) != len(dims) or min(weights) < 0 or sum(weights) == 0):
            raise ConfigError("width_weights", weights, f"needs {len(dims)} non-negative numbers, not all zero")
        if (self.inner.weight, self.inner.start, self.inner.ramp) != (1, 0, 0):
            raise ConfigError("inner.weight", self.inner, "set these of the Matryoshka objective instead")

    @property
    def needs(self) -> frozenset[str]:
        """What the inner objective needs."""
        return self.inner.needs

    @property
    def passes(self) -> frozenset[PassName]:
        """What the inner objective reads."""
        return self.inner.passes

    def build(self, dims: Dimensions) -> "MatryoshkaLoss":
        """The inner loss, run at each width.

        Raises:
            ConfigError: the widths do not end with the embedding's full width.
        """
        if self.embed_dims[-1] != dims.embed_dim:
            raise ConfigError("embed_dims", self.embed_dims, f"must end with the full width {dims.embed_dim}")
        return MatryoshkaLoss(self, self.inner.build(dims))


class MatryoshkaLoss(Objective):
    """Weighted mean over widths of each term of the inner loss."""

    def __init__(self, config: Matryoshka, inner: Objective) -> None:
        super().__init__()
        self.inner = inner
        weights = config.width_weights or (1.0,) * len(config.embed_dims)
        self._shares = {dim: weight / sum(weights) for dim, weight in zip(config.embed_dims, weights, strict=True)}

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """The inner terms, and each of them per width as `term@width` for the log."""
        terms: Terms = {}
        for embed_dim, share in self._shares.items():
            inner = self.inner(passes.truncate(embed_dim), batch)
            for name, value in inner.items():
                terms[name] = terms.get(name, torch.zeros_like(value)) + share * value
                terms[f"{name}@{embed_dim}"] = value.detach()
        return terms

    def after_step(self, decay: float) -> None:
        """What the inner objective does."""
        self.inner.after_step(decay)
