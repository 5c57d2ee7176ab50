"""The contract between an objective and everything else.

A leaf objective is one file: a frozen `ObjectiveConfig` with its knobs (the paper's defaults) and a final
`Objective` with its parameters and maths. It declares which `Batch` fields and which encoder passes it needs, reads
`Passes` by name, and returns *unweighted, named* terms. It knows nothing of submodels, widths, Ray or logging: MRL
is a wrapper around it (`Matryoshka`), MatFormer is the loop around the step, weights belong to `JointObjective`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from elastic.batch import Batch, Passes, PassName
from elastic.errors import ConfigError

Terms: TypeAlias = dict[str, Tensor]
"""Scalar loss terms by name, unweighted, each a mean over what it is computed on.

A name with an `@` is logged, but not added to the loss: one part of another term (`nce@16`), or the state of what is
learned. `collapse@<what>` has a meaning for everybody: 1 is healthy, 0 is collapsed, and a run warns when it gets low.
"""


@dataclass(frozen=True, slots=True)
class Dimensions:
    """The sizes an objective may need to create its parameters."""

    embed_dim: int
    """Width of `Features.embedding`."""
    width: int
    """Width of `Features.cls_token` and the patch tokens."""
    num_classes: int
    """Instance classes over all domains of the training split."""
    class_domains: tuple[int, ...] = ()
    """Domain index of each class, ascending; empty when the data has no labels."""
    num_patches: int = 0
    """Patch tokens of an image; they form a square grid, row by row."""


class Objective(nn.Module, ABC):
    """Trainable maths of one objective."""

    @abstractmethod
    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """Unweighted terms of one batch at one submodel."""

    def after_step(self, decay: float) -> None:
        """Move what follows the trained weights after an update, such as averaged heads and centres.

        `decay` is that of the averaged encoder at this step. Nothing by default.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig(ABC):
    """Knobs of one objective. `weight` scales its terms inside the joint loss."""

    weight: float = 1.0
    """Factor of its terms in the joint loss."""
    start: float = 0.0
    """Share of the run before which it is left out, its encoder passes included."""
    ramp: float = 0.0
    """Share of the run over which its weight then rises linearly."""

    def __post_init__(self) -> None:
        if not (0 <= self.start < 1 and 0 <= self.ramp <= 1):
            raise ConfigError("start", (self.start, self.ramp), "needs 0 <= start < 1 and 0 <= ramp <= 1")

    @property
    def needs(self) -> frozenset[str]:
        """`Batch` fields without which the objective cannot run."""
        return frozenset()

    @property
    def passes(self) -> frozenset[PassName]:
        """Encoder passes that it reads besides the clean one. Each costs a forward pass, most a backward pass too."""
        return frozenset()

    @abstractmethod
    def build(self, dims: Dimensions) -> Objective:
        """The module that computes this objective for these sizes."""

    def weight_at(self, progress: float) -> float:
        """The weight after this share of the run: nothing before `start`, then a linear rise over `ramp`."""
        if progress < self.start:
            return 0.0
        return self.weight * (1.0 if self.ramp == 0 else min(1.0, (progress - self.start) / self.ramp))
