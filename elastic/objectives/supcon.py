"""Supervised contrast: images of one instance class, or of one caption, attract, all other images repel.

Source: SupCon (arXiv 2004.11362) equation 2, the mean over positives outside the logarithm; equal to SynCLR's
multi-positive loss (arXiv 2312.17742) with instance classes in place of captions. By caption, it is StableRep's
(arXiv 2306.00984).
"""

from dataclasses import dataclass
from typing import Literal

from elastic.batch import Batch, Passes
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.objectives.contrastive import multi_positive_nce
from elastic.objectives.distributed import gather, gather_with_grad


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiPositive(ObjectiveConfig):
    """Multi-positive contrast; batches need several images per class, or per caption."""

    temperature: float = 0.1
    """Softmax temperature, fixed."""
    by: Literal["labels", "caption_ids"] = "labels"
    """What images that attract have in common: their instance class, or the caption that they were made from."""

    def __post_init__(self) -> None:
        ObjectiveConfig.__post_init__(self)
        if self.temperature <= 0:
            raise ConfigError("temperature", self.temperature, "must be positive")

    @property
    def needs(self) -> frozenset[str]:
        """Instance classes or captions."""
        return frozenset({self.by})

    def build(self, dims: Dimensions) -> "MultiPositiveLoss":
        """The loss, which has no parameters."""
        return MultiPositiveLoss(self)


class MultiPositiveLoss(Objective):
    """Contrast within the global batch."""

    def __init__(self, config: MultiPositive) -> None:
        super().__init__()
        self.config = config

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """`nce`: starts near the log of the other rows, floor at the log of the positives per row."""
        groups = batch.labels if self.config.by == "labels" else batch.caption_ids
        assert groups is not None
        embeddings = gather_with_grad(passes.clean.embedding)
        return {"nce": multi_positive_nce(embeddings, gather(groups), self.config.temperature)}
