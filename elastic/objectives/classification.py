"""Supervised metric learning as classification: cosines to one learned prototype per instance class.

Under `Matryoshka` this is MRL-E: width `m` uses the first `m` coordinates of the same prototypes, normalised
again, so that no head is thrown away with a width.

Sources: normalised softmax, NormFace (arXiv 1704.06369); margins, CosFace (arXiv 1801.09414) equation 4 and
ArcFace (arXiv 1801.07698) equation 3; the straight line where an angle would pass 180 degrees is from ArcFace's
code (deepinsight/insightface). MRL-E: arXiv 2205.13147 section 3.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from elastic.batch import NO_LABEL, Batch, Passes
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.objectives.distributed import global_mean

Margin = Literal["cosine", "angle"]
"""Taken from the cosine of the true class (CosFace), or added to its angle (ArcFace)."""

_INIT_STD = 0.02


def add_margin(
    cosines: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"], margin: float, kind: Margin
) -> Float[Tensor, "batch classes"]:
    """Cosines with the true class made harder by `margin` (in units of the cosine, or radians)."""
    if margin == 0:
        return cosines
    true = F.one_hot(labels, cosines.shape[1]).bool()
    if kind == "cosine":
        return torch.where(true, cosines - margin, cosines)
    sines = (1 - cosines.square()).clamp(min=1e-9).sqrt()
    shifted = cosines * math.cos(margin) - sines * math.sin(margin)
    beyond = cosines - margin * math.sin(margin)  # keeps falling where the angle plus the margin passes pi
    return torch.where(true, torch.where(cosines > -math.cos(margin), shifted, beyond), cosines)


@dataclass(frozen=True, kw_only=True, slots=True)
class Classification(ObjectiveConfig):
    """Normalised-softmax classification of instance classes."""

    scale: float = 16.0
    """Inverse temperature of the cosines (UDON: 16; CosFace and ArcFace: 64 for millions of faces)."""
    margin: float = 0.0
    """How much harder the true class is made (CosFace: 0.35; ArcFace: 0.5 radians); 0 is NormFace."""
    margin_kind: Margin = "cosine"
    """Whether the margin acts on the cosine or on the angle."""
    label_smoothing: float = 0.0
    """Probability spread evenly over all classes."""

    def __post_init__(self) -> None:
        ObjectiveConfig.__post_init__(self)
        if self.scale <= 0 or not 0 <= self.margin < math.pi / 2 or not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                "classification", self, "needs scale > 0, 0 <= margin < pi/2 and 0 <= label_smoothing < 1"
            )

    @property
    def needs(self) -> frozenset[str]:
        """Instance classes."""
        return frozenset({"labels"})

    def build(self, dims: Dimensions) -> "ClassificationLoss":
        """The loss with one prototype per class.

        Raises:
            ConfigError: the training data has no classes.
        """
        return ClassificationLoss(self, dims)


class ClassificationLoss(Objective):
    """Cross-entropy over scaled cosines to the prototypes."""

    def __init__(self, config: Classification, dims: Dimensions) -> None:
        super().__init__()
        if dims.num_classes < 1:
            raise ConfigError("num_classes", dims.num_classes, "classification needs labelled training data")
        self.config = config
        self.prototypes = nn.Parameter(torch.randn(dims.num_classes, dims.embed_dim) * _INIT_STD)

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """`ce`: cross-entropy of the labelled rows; starts near the log of the number of classes."""
        assert batch.labels is not None
        config, labelled = self.config, batch.labels != NO_LABEL
        labels = batch.labels.clamp(min=0)
        prototypes = self.prototypes[:, : passes.clean.embedding.shape[1]]
        cosines = F.normalize(passes.clean.embedding, dim=1) @ F.normalize(prototypes, dim=1).T
        logits = config.scale * add_margin(cosines, labels, config.margin, config.margin_kind)
        rows = F.cross_entropy(logits, labels, reduction="none", label_smoothing=config.label_smoothing)
        return {"ce": global_mean(rows, labelled)}
