"""The contract between an objective and everything else.

A leaf objective is one file: a frozen `ObjectiveConfig` with its knobs (the paper's defaults) and a final
`Objective` with its parameters and maths. It declares which `Batch` fields it needs, reads `Features` by
name, and returns *unweighted, named* terms. It knows nothing of submodels, widths, Ray or logging: MRL is a
wrapper around it (`Matryoshka`), MatFormer is the loop around the step, weights belong to `JointObjective`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from elastic.batch import Batch, Features

Terms: TypeAlias = dict[str, Tensor]
"""Scalar loss terms by name, unweighted, each a mean over what it is computed on.

A name with an `@` (`nce@16`) reports one part of another term: it is logged, but not added to the loss again.
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
    """Domain index of each class; empty when the data has no labels."""


class Objective(nn.Module, ABC):
    """Trainable maths of one objective."""

    @abstractmethod
    def forward(self, student: Features, batch: Batch, teacher: Features | None) -> Terms:
        """Unweighted terms of one batch at one submodel; `teacher` is detached, at the full submodel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig(ABC):
    """Knobs of one objective. `weight` scales its terms inside the joint loss."""

    weight: float = 1.0
    """Factor of its terms in the joint loss."""

    @property
    def needs(self) -> frozenset[str]:
        """`Batch` fields without which the objective cannot run."""
        return frozenset()

    @property
    def needs_teacher(self) -> bool:
        """Whether `teacher` must be given: costs one more forward pass."""
        return False

    @abstractmethod
    def build(self, dims: Dimensions) -> Objective:
        """The module that computes this objective for these sizes."""
