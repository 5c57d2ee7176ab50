"""Smaller submodels learn from the largest: in-place distillation, and one space for all of them.

The largest submodel's embeddings, computed earlier in the same step and without gradient, are what a smaller one is
to reproduce. So the step's policy must train the largest always (`all`, `sandwich` or `anchored`).

Sources: in-place distillation, US-Nets (arXiv 1903.05134) section 3.3, which matches class probabilities; here, as
there are no classes in an embedding space, it matches what each image finds similar among the others. The cosine is
MatFormer's cross-granularity retrieval (arXiv 2310.07707 section 4.3) made a loss.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from elastic.batch import Batch, Passes, PassName
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.objectives.distributed import gather, gather_with_grad, global_mean


@dataclass(frozen=True, kw_only=True, slots=True)
class Alignment(ObjectiveConfig):
    """Embeddings of smaller submodels follow those of the largest."""

    kind: Literal["cosine", "similarity"] = "cosine"
    """cosine: each embedding points where the largest's does; similarity: it ranks the other images as that does."""
    temperature: float = 0.1
    """Of the softmax over the other images, for `similarity`."""

    def __post_init__(self) -> None:
        ObjectiveConfig.__post_init__(self)
        if self.temperature <= 0:
            raise ConfigError("temperature", self.temperature, "must be positive")

    @property
    def passes(self) -> frozenset[PassName]:
        """The largest submodel's features."""
        return frozenset({"largest"})

    def build(self, dims: Dimensions) -> "AlignmentLoss":
        """The loss, which has no parameters."""
        return AlignmentLoss(self)


class AlignmentLoss(Objective):
    """Zero terms at the largest submodel itself, which has nothing to follow."""

    def __init__(self, config: Alignment) -> None:
        super().__init__()
        self.config = config

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """`cosine` (1 - cosine, at least 0), or `similarity` (a divergence in nats, at least 0)."""
        if passes.largest is None:
            return {}
        student, target = passes.clean.embedding, passes.largest.embedding
        if self.config.kind == "cosine":
            distances = 1 - F.cosine_similarity(student, target)
            return {"cosine": global_mean(distances, torch.ones_like(distances, dtype=torch.bool))}
        divergence = similarity_divergence(gather_with_grad(student), gather(target), self.config.temperature)
        return {"similarity": divergence}


def similarity_divergence(
    student: Float[Tensor, "images dim"], target: Float[Tensor, "images dim"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over images of KL(target || student) between softmax distributions over all other images."""
    log_target, log_student = (_log_neighbours(rows, temperature) for rows in (target, student))
    return F.kl_div(log_student, log_target, log_target=True, reduction="sum") / len(student)


def _log_neighbours(rows: Float[Tensor, "images dim"], temperature: float) -> Float[Tensor, "images others"]:
    normalised = F.normalize(rows, dim=1)
    logits = normalised @ normalised.T / temperature
    others = ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return logits[others].view(len(rows), -1).log_softmax(dim=1)
