"""TIPS: two captions for two class tokens, self-distillation of small crops, and prediction of hidden patches.

The first class token is matched with what people wrote, the second with a machine-made description of the scene. A
teacher that sees the whole image sets targets for the class token of its crops, and for the patches of the same
image with most of them hidden. The three are separate objectives; a recipe weighs them 1, 1 and 2.

Sources: TIPS (arXiv 2410.16512) section 3; TIPS v2 (arXiv 2604.12012) for `every_patch` (iBOT++) and the student as
its own teacher, which is `TrainConfig.teacher`. Deviations: the paper has no embedding head, here both class tokens
go through the encoder's nested one; where the paper leaves normalisation open, losses are means, over crops, and
over patches within an image and then over images (iBOT's rule).
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from elastic.batch import Batch, Passes, PassName
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.objectives.contrastive import ImageText, ImageTextLoss, global_image_text
from elastic.objectives.distributed import global_mean
from elastic.objectives.prototypes import PrototypeMatching, Prototypes


@dataclass(frozen=True, kw_only=True, slots=True)
class DualImageText(ImageText):
    """Image-text contrast twice: written captions for the first class token, synthetic ones for the second."""

    min_temperature: float = 1e-3
    """A bound against overflow only: the released models reached 0.005, half of what CLIP allows."""

    @property
    def needs(self) -> frozenset[str]:
        """Synthetic captions, kept apart; batches that have no written ones (generated images) train the second."""
        return frozenset({"synthetic_captions"})

    def build(self, dims: Dimensions) -> "DualImageTextLoss":
        """The loss with its temperature."""
        return DualImageTextLoss(self)


class DualImageTextLoss(ImageTextLoss):
    """Mean of two image-text losses whose negatives never mix the two kinds of caption; they share the temperature."""

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """`synthetic` and, where images have written captions, `web`, each halved; start near half of ln(captions).

        Raises:
            ConfigError: the encoder has no second class token, or no text tower.
        """
        student, temperature = passes.clean, self.temperature()
        if student.second_embedding is None:
            raise ConfigError("model.vision.num_cls_tokens", 1, "two captions need two class tokens: set it to 2")
        synthetic = global_image_text(
            student.second_embedding, student.second_text_embedding, batch.synthetic_captions, temperature
        )
        terms = {"synthetic": synthetic / 2, "temperature@value": temperature.detach()}
        if batch.captions is not None:
            web = global_image_text(student.embedding, student.text_embedding, batch.captions, temperature)
            terms["web"] = web / 2
        return terms


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfDistillation(ObjectiveConfig):
    """Small crops of an image are to match the prototypes that the teacher sees in the whole image (DINO)."""

    prototypes: Prototypes = field(default_factory=Prototypes)
    """The head, and how its targets are balanced."""

    @property
    def needs(self) -> frozenset[str]:
        """Small crops."""
        return frozenset({"local_images"})

    @property
    def passes(self) -> frozenset[PassName]:
        """The student on crops, the teacher on whole images."""
        return frozenset({"local", "teacher"})

    def build(self, dims: Dimensions) -> "SelfDistillationLoss":
        """The loss with its head."""
        return SelfDistillationLoss(self, dims)


class SelfDistillationLoss(Objective):
    """Cross-entropy of every crop to the teacher's view of its image."""

    def __init__(self, config: SelfDistillation, dims: Dimensions) -> None:
        super().__init__()
        self.matching = PrototypeMatching(dims.width, config.prototypes)

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """`crops`: starts near the log of the number of prototypes."""
        assert passes.local is not None and passes.teacher is not None
        targets, health = self.matching.targets(passes.teacher.cls_token, passes.progress)
        per_image = len(passes.local.cls_token) // len(targets)
        losses = self.matching.losses(passes.local.cls_token, targets.repeat_interleave(per_image, dim=0))
        return {"crops": global_mean(losses, torch.ones_like(losses, dtype=torch.bool)), **health}

    def after_step(self, decay: float) -> None:
        """Move the teacher's head and centre."""
        self.matching.after_step(decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedPatches(ObjectiveConfig):
    """Patches of a mostly hidden image are to match the prototypes that the teacher sees there (iBOT)."""

    prototypes: Prototypes = field(default_factory=Prototypes)
    """The head, apart from that of class tokens, and how its targets are balanced."""
    every_patch: bool = False
    """Visible patches count too (TIPS v2's iBOT++): patches learn to agree with text, at a third more head cost."""

    @property
    def passes(self) -> frozenset[PassName]:
        """The student on masked images, the teacher on whole ones."""
        return frozenset({"masked", "teacher"})

    def build(self, dims: Dimensions) -> "MaskedPatchesLoss":
        """The loss with its head."""
        return MaskedPatchesLoss(self, dims)


class MaskedPatchesLoss(Objective):
    """Cross-entropy of hidden (or all) patches to the teacher's at the same places."""

    def __init__(self, config: MaskedPatches, dims: Dimensions) -> None:
        super().__init__()
        self.config = config
        self.matching = PrototypeMatching(dims.width, config.prototypes)

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """`patches`: starts near the log of the number of prototypes."""
        assert passes.masked is not None and passes.teacher is not None and batch.mask is not None
        counted = torch.ones_like(batch.mask) if self.config.every_patch else batch.mask
        # The head sees counted patches only: at small sizes it costs as much as the encoder.
        targets, health = self.matching.targets(passes.teacher.patch_tokens[counted], passes.progress)
        losses = torch.zeros_like(counted, dtype=targets.dtype)
        losses = losses.masked_scatter(counted, self.matching.losses(passes.masked.patch_tokens[counted], targets))
        rows, valid = mean_in_images(losses, counted)
        return {"patches": global_mean(rows, valid), **health}

    def after_step(self, decay: float) -> None:
        """Move the teacher's head and centre."""
        self.matching.after_step(decay)


def mean_in_images(
    losses: Float[Tensor, "images patches"], counted: Bool[Tensor, "images patches"]
) -> tuple[Float[Tensor, " images"], Bool[Tensor, " images"]]:
    """The mean loss of each image's counted patches, and which images have any."""
    counts = counted.sum(dim=1)
    return torch.where(counted, losses, 0).sum(dim=1) / counts.clamp(min=1), counts > 0
