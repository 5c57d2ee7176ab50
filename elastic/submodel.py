"""The shared nouns: what can be computed, what is kept, what is asked, what is decided.

Plain values without torch or ray, so that training, selection, serving and the client's tools agree
on them. `Submodel` is what *computes*; `embed_dim` is what is *kept* of the result; `Space` is
everything that was trained to be chosen. Source: MatFormer (arXiv 2310.07707) sections 2 and 3 for
granularities and Mix'n'Match; MRL (arXiv 2205.13147) for nested embedding widths.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from elastic.errors import ConfigError, InvalidRequest

GRANULARITY_NAMES = ("S", "M", "L", "XL")
"""MatFormer's names for four trained widths; other counts are named g0, g1, ..."""

_RUN = re.compile(r"(\d+)(?:x(\d+))?")


@dataclass(frozen=True, slots=True)
class Submodel:
    """One runnable slice of a nested model: the FFN hidden size of every layer, first layer first.

    `str(Submodel((64, 64, 128)))` is `"ffn=64x2+128x1"`, and `Submodel.parse` reads it back.
    """

    ffn_dims: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.ffn_dims or any(dim < 1 for dim in self.ffn_dims):
            raise ConfigError("ffn_dims", self.ffn_dims, "needs at least one layer and positive sizes")

    def __str__(self) -> str:
        runs = ((dim, len(list(run))) for dim, run in groupby(self.ffn_dims))
        return "ffn=" + "+".join(f"{dim}x{count}" for dim, count in runs)

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.ffn_dims)

    @property
    def is_uniform(self) -> bool:
        """Whether every layer has the same FFN hidden size."""
        return len(set(self.ffn_dims)) == 1

    @classmethod
    def parse(cls, text: str) -> "Submodel":
        """Read the text form `ffn=64x2+128x2` (a count of one may be left out).

        Raises:
            InvalidRequest: the text is not of that form.
        """
        body = text.removeprefix("ffn=")
        dims: list[int] = []
        for part in body.split("+"):
            match = _RUN.fullmatch(part)
            if match is None:
                raise InvalidRequest("submodel", f"{text!r} is not of the form 'ffn=64x2+128x2'")
            dims += [int(match[1])] * int(match[2] or 1)
        if not dims or min(dims) < 1:
            raise InvalidRequest("submodel", f"{text!r} has no layers or a size of zero")
        return cls(tuple(dims))


@dataclass(frozen=True, slots=True)
class Space:
    """Everything that was trained to be chosen: depth, FFN hidden sizes and embedding widths.

    `ffn_dims` and `embed_dims` ascend; their last members are the full model.
    """

    depth: int
    ffn_dims: tuple[int, ...]
    embed_dims: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise ConfigError("depth", self.depth, "must be at least 1")
        for name, dims in (("ffn_dims", self.ffn_dims), ("embed_dims", self.embed_dims)):
            if not dims or min(dims) < 1 or list(dims) != sorted(set(dims)):
                raise ConfigError(name, dims, "must be positive, ascending and without repeats")

    @property
    def full(self) -> Submodel:
        """The largest submodel, the whole network."""
        return self.uniform(self.ffn_dims[-1])

    @property
    def smallest(self) -> Submodel:
        """The submodel with the least FFN everywhere."""
        return self.uniform(self.ffn_dims[0])

    @property
    def full_embed_dim(self) -> int:
        """The width of the whole embedding."""
        return self.embed_dims[-1]

    def uniform(self, ffn_dim: int) -> Submodel:
        """The submodel with the same FFN hidden size in every layer."""
        return Submodel((ffn_dim,) * self.depth)

    @property
    def granularities(self) -> dict[str, Submodel]:
        """The trained uniform submodels by name, ascending: S, M, L, XL when there are four."""
        count = len(self.ffn_dims)
        names = GRANULARITY_NAMES if count == len(GRANULARITY_NAMES) else tuple(f"g{i}" for i in range(count))
        return {name: self.uniform(dim) for name, dim in zip(names, self.ffn_dims, strict=True)}

    def name(self, submodel: Submodel) -> str:
        """The granularity's name, or the text form of a mixed submodel."""
        names = {value: name for name, value in self.granularities.items()}
        return names.get(submodel, str(submodel))

    def parse(self, text: str) -> Submodel:
        """Read a granularity name (`XL`) or a text form (`ffn=64x2+128x2`) that this space holds.

        Raises:
            InvalidRequest: unknown name, malformed text, or a submodel outside this space.
        """
        named = self.granularities
        if text in named:
            return named[text]
        if not text.startswith("ffn="):
            raise InvalidRequest("submodel", f"{text!r} is neither one of {', '.join(named)} nor 'ffn=...'")
        submodel = Submodel.parse(text)
        self.check(submodel)
        return submodel

    def check(self, submodel: Submodel) -> None:
        """Accept a submodel that this space can run.

        Raises:
            InvalidRequest: wrong number of layers, or a size that was not trained.
        """
        if submodel.depth != self.depth:
            raise InvalidRequest("submodel", f"{submodel} has {submodel.depth} layers, the model has {self.depth}")
        unknown = sorted(set(submodel.ffn_dims) - set(self.ffn_dims))
        if unknown:
            raise InvalidRequest("submodel", f"FFN sizes {unknown} were not trained; choose from {self.ffn_dims}")

    def check_embed_dim(self, embed_dim: int) -> None:
        """Accept an embedding width that was trained.

        Raises:
            InvalidRequest: the width is not in `embed_dims`.
        """
        if embed_dim not in self.embed_dims:
            raise InvalidRequest("embed_dim", f"{embed_dim} was not trained; choose from {self.embed_dims}")

    def mixes(self) -> Iterator[Submodel]:
        """Mix'n'Match candidates by MatFormer's rule, ascending in size, uniform ones included.

        Only adjacent granularities are mixed, the smaller in the earlier layers ("least slope", non-decreasing
        with depth; MatFormer section 4 of the specification).
        """
        for low, high in zip(self.ffn_dims, self.ffn_dims[1:], strict=False):
            for num_high in range(self.depth):
                yield Submodel((low,) * (self.depth - num_high) + (high,) * num_high)
        yield self.full

    def translate(self, submodel: Submodel, onto: "Space") -> Submodel:
        """The submodel of another tower that has the same granularity at the same relative depth.

        Layer `j` of `onto` takes the granularity of layer `floor(j * depth / onto.depth)`; both spaces need
        as many granularities.
        """
        if len(self.ffn_dims) != len(onto.ffn_dims):
            raise ConfigError("ffn_dims", onto.ffn_dims, f"needs {len(self.ffn_dims)} sizes, one per granularity")
        level = {dim: index for index, dim in enumerate(self.ffn_dims)}
        layers = (submodel.ffn_dims[j * self.depth // onto.depth] for j in range(onto.depth))
        return Submodel(tuple(onto.ffn_dims[level[dim]] for dim in layers))


@dataclass(frozen=True, slots=True)
class Slo:
    """What one request asks for. Times are budgets in milliseconds from the moment it was sent."""

    latency_ms: float
    min_quality: float | None = None
    """The least acceptable measured quality, in the quality table's unit (R@1 in [0, 1])."""
    embed_dim: int | None = None
    """Exactly this width; excludes the two bounds below."""
    min_embed_dim: int | None = None
    max_embed_dim: int | None = None
    priority: int = 0
    """Larger is more important; breaks ties between equal deadlines."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_ms) and self.latency_ms > 0):
            raise InvalidRequest("slo.latency_ms", f"{self.latency_ms} is not a positive, finite number")
        if self.min_quality is not None and not 0 <= self.min_quality <= 1:
            raise InvalidRequest("slo.min_quality", f"{self.min_quality} is not between 0 and 1")
        if self.embed_dim is not None and (self.min_embed_dim is not None or self.max_embed_dim is not None):
            raise InvalidRequest("slo.embed_dim", "is exact; leave out min_embed_dim and max_embed_dim")
        low, high = self.min_embed_dim, self.max_embed_dim
        if low is not None and high is not None and low > high:
            raise InvalidRequest("slo.min_embed_dim", f"{low} is above max_embed_dim {high}")

    def allows(self, embed_dim: int) -> bool:
        """Whether an embedding width satisfies the request."""
        if self.embed_dim is not None:
            return embed_dim == self.embed_dim
        return (self.min_embed_dim or 0) <= embed_dim <= (self.max_embed_dim or embed_dim)


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided for a request, and why."""

    submodel: Submodel
    embed_dim: int
    predicted_ms: float
    """Compute time that the latency table predicts for the batch it runs in."""
    predicted_quality: float
    """The quality table's value for this submodel and width (R@1 in [0, 1])."""
    reason: str = field(compare=False)
