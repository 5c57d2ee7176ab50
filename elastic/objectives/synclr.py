"""SynCLR's contrast: all images made from one caption are positives, and the averaged network makes the keys.

A caption is a class. The student's class token, through a projector and a predictor, is to find the teacher's class
tokens of the images of its caption among those of the global batch. Keys carry no gradient, so a plain gather is
exact. The target of a row is uniform over its positives: the least possible value is the log of their number, and
SynCLR's four images per caption give ln 3 without and ln 4 with the row's own key.

Rows without a positive are no anchors, but negatives of all others. Batches should hold whole groups of one caption
(`ClassBalanced(by="caption_id")`). The masked-image part of the paper is `tips.MaskedPatches` with Sinkhorn's
balance, as a second objective of the recipe.

Sources: SynCLR (arXiv 2312.17742) section 3.3 for the loss; google-research/syn-rep-learn for the heads and for which
keys an anchor sees. Deviations: captions are compared, not rows, so that two groups of one caption attract; the keys'
averages follow the encoder's (`OptimConfig.ema_decay`) where the paper's decay rises from 0.994 to 1 along a cosine;
anchors are the class tokens of whole images where the reference uses those of the masked ones.
"""

import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from elastic.batch import NO_LABEL, Batch, Features, Passes, PassName
from elastic.errors import ConfigError
from elastic.model.ema import update_average
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.objectives.contrastive import nce_rows
from elastic.objectives.distributed import first_row, gather, global_mean

ClassToken = Literal["first", "second"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SynClr(ObjectiveConfig):
    """Contrast of images grouped by caption with the teacher's view of them."""

    temperature: float = 0.08
    """Softmax temperature, fixed."""
    token: ClassToken = "first"
    """Class token that is read. Beside an image-text objective take the second: captions that group images describe
    scenes, those of the web mostly one object."""
    locals: bool = False
    """Small crops are anchors too, against the same keys (SynCLR: 4 of each image)."""
    local_self_key: bool = True
    """Whether a crop's own image is one of its positives; a whole image's own key never is."""
    hidden: int = 512
    """Width of the hidden layers of projector and predictor (SynCLR: 4,096)."""
    out: int = 128
    """Width in which anchors and keys are compared (SynCLR: 256)."""

    def __post_init__(self) -> None:
        ObjectiveConfig.__post_init__(self)
        if self.temperature <= 0:
            raise ConfigError("temperature", self.temperature, "must be positive")
        if min(self.hidden, self.out) < 1:
            raise ConfigError("synclr", (self.hidden, self.out), "needs positive sizes")

    @property
    def needs(self) -> frozenset[str]:
        """Which rows share a caption, and small crops where they are anchors."""
        return frozenset({"caption_ids", "local_images"} if self.locals else {"caption_ids"})

    @property
    def passes(self) -> frozenset[PassName]:
        """The teacher on whole images, and the student on crops where they are anchors."""
        return frozenset({"teacher", "local"} if self.locals else {"teacher"})

    def build(self, dims: Dimensions) -> "SynClrLoss":
        """The loss with its heads."""
        return SynClrLoss(self, dims)


class SynClrLoss(Objective):
    """Multi-positive contrast of the student's class tokens with the teacher's."""

    def __init__(self, config: SynClr, dims: Dimensions) -> None:
        super().__init__()
        self.config = config
        self.projector = _mlp((dims.width, config.hidden, config.hidden, config.out))
        self.predictor = _mlp((config.out, config.hidden, config.out))
        self.key_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """`global` and, with crops, `local`; each starts near the log of the keys that an anchor sees.

        Raises:
            ConfigError: the second class token is to be read, and the encoder has none.
        """
        assert batch.caption_ids is not None and passes.teacher is not None
        token, captions = self.config.token, batch.caption_ids
        with torch.no_grad():
            keys = gather(self.key_projector(class_token(passes.teacher, token)))
        key_captions = gather(captions)
        place = torch.arange(len(captions), device=captions.device) + first_row(captions)
        positives = caption_positives(captions, key_captions)
        own = F.one_hot(place, len(keys)).bool()
        others = positives & ~own
        rows = self._rows(passes.clean, keys, others, own)
        terms = {"global": global_mean(rows, others.any(dim=1))} | positives_report(others)
        if self.config.locals:
            terms["local"] = self._local(passes, keys, positives, own)
        return terms

    def _local(
        self,
        passes: Passes,
        keys: Float[Tensor, "keys out"],
        positives: Bool[Tensor, "images keys"],
        own: Bool[Tensor, "images keys"],
    ) -> Float[Tensor, ""]:
        """The mean over all crops, which is that over images of the mean over an image's crops."""
        assert passes.local is not None
        hidden = torch.zeros_like(own) if self.config.local_self_key else own
        per_image = len(passes.local.cls_token) // len(positives)
        positives, hidden = (each.repeat_interleave(per_image, dim=0) for each in (positives & ~hidden, hidden))
        return global_mean(self._rows(passes.local, keys, positives, hidden), positives.any(dim=1))

    def _rows(
        self, features: Features, keys: Tensor, positives: Bool[Tensor, "anchors keys"], hidden: Tensor
    ) -> Float[Tensor, " anchors"]:
        anchors = self.predictor(self.projector(class_token(features, self.config.token)))
        return multi_positive_rows(anchors, keys, positives, hidden, self.config.temperature)

    def after_step(self, decay: float) -> None:
        """Move the keys' projector; the predictor has no average."""
        update_average(self.key_projector, self.projector, decay)


def multi_positive_rows(
    anchors: Float[Tensor, "anchors dim"],
    keys: Float[Tensor, "keys dim"],
    positives: Bool[Tensor, "anchors keys"],
    hidden: Bool[Tensor, "anchors keys"],
    temperature: float,
) -> Float[Tensor, " anchors"]:
    """Cross-entropy of each anchor to the uniform distribution over its positives, among the keys not hidden from it.

    Zero for anchors without a positive.
    """
    logits = F.normalize(anchors, dim=1) @ F.normalize(keys, dim=1).T / temperature
    lowest = torch.finfo(logits.dtype).min  # finite, so that an anchor that sees nothing has no NaN
    return nce_rows(logits.masked_fill(hidden, lowest), positives)


def caption_positives(
    captions: Int[Tensor, " anchors"], key_captions: Int[Tensor, " keys"]
) -> Bool[Tensor, "anchors keys"]:
    """Which keys share an anchor's caption; those of `NO_LABEL` share none."""
    return (captions[:, None] == key_captions[None, :]) & (captions != NO_LABEL)[:, None]


def positives_report(positives: Bool[Tensor, "anchors keys"]) -> Terms:
    """How many rows have positives, how many, and the loss that a perfect student would have."""
    counts = positives.sum(dim=1)
    anchored, everybody = counts > 0, torch.ones_like(counts, dtype=torch.bool)
    return {
        "positives@mean": global_mean(counts.float(), anchored),
        "anchored@fraction": global_mean(anchored.float(), everybody),
        "floor@nats": global_mean(counts.clamp(min=1).log(), anchored),
    }


def class_token(features: Features, token: ClassToken) -> Float[Tensor, "batch width"]:
    """The class token that is read; the first is what the encoder pools, be it a token or the mean of the patches.

    Raises:
        ConfigError: the encoder has no second one.
    """
    if token == "first":
        return features.cls_token
    if features.second_cls_token is None:
        raise ConfigError("model.vision.num_cls_tokens", 1, "SynClr reads a second class token: set it to 2")
    return features.second_cls_token


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with LayerNorm and GELU between them; the last norm has nothing to learn."""
    layers: list[nn.Module] = []
    for width, following in pairwise(widths[:-1]):
        layers += [nn.Linear(width, following, bias=False), nn.LayerNorm(following), nn.GELU()]
    last = nn.LayerNorm(widths[-1], elementwise_affine=False)
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1], bias=False), last)
