"""The encoder and its objectives in one module, and the encoder passes that a step makes.

They are one module because the objectives have parameters too (class prototypes, temperatures, heads), and data
parallelism must see all of them in one forward pass.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from elastic.batch import Batch, Features, Passes, PassName
from elastic.model.encoder import Encoder
from elastic.model.vit import Mask
from elastic.objectives.base import Terms
from elastic.objectives.joint import JointObjective
from elastic.submodel import Submodel
from elastic.train.cached import Flat, carry


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """What is settled for a batch before its passes: which to make, and what objectives compare them with."""

    wanted: frozenset[PassName] = frozenset()
    """The passes that the batch's objectives read. Of the whole batch: a part of it may lack its captions."""
    progress: float = 0.0
    """Share of the run's updates that were taken."""
    teacher: Features | None = None
    """`None` where there is none, or where the student is its own (TIPS v2)."""
    largest: Features | None = None
    """`None` until the largest submodel was computed."""


class Learner(nn.Module):
    """A batch and a submodel in, the joint loss and its named terms out."""

    entries = ("look", "observe")
    """Methods besides `forward` that others call; inside of one, every weight is there even if it is sharded."""

    def __init__(self, encoder: Encoder, objective: JointObjective, precision: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        self._precision = precision
        hides = any("masked" in config.passes for config in objective.configs.values())
        # Stands for a hidden patch. It is here and not in the encoder, because only training hides any.
        width = encoder.config.vision.shape.width
        self.mask_token = nn.Parameter(torch.zeros(width)) if hides else None

    def forward(
        self, batch: Batch, submodel: Submodel, given: Given, pull: Flat | None = None
    ) -> tuple[Tensor, Terms, Features]:
        """The joint loss, its terms, and the clean pass's features, detached.

        The encoder runs in the configured precision, the objectives always in fp32. With a `pull`, the loss is what
        carries these gradients of the features into the encoder (see `cached`), and there are no terms.
        """
        passes = self.run(batch, submodel, given)
        if pull is None:
            loss, terms = self.objective(passes, batch)
            return loss, terms, passes.clean.detach()
        # The objectives' own gradients are there already; data parallelism shares those that the loss touches.
        touched = sum(0 * parameter.sum() for parameter in self.objective.parameters() if parameter.requires_grad)
        return carry(passes, pull) + touched, {}, passes.clean.detach()

    def run(self, batch: Batch, submodel: Submodel, given: Given) -> Passes:
        """Every pass that is wanted, once."""
        wanted = given.wanted
        clean = self.encode(self.encoder, batch, submodel)
        return Passes(
            clean=clean,
            masked=self._see_masked(batch, submodel) if "masked" in wanted else None,
            local=self._see_local(batch, submodel) if "local" in wanted else None,
            teacher=(given.teacher or clean.detach()) if "teacher" in wanted else None,
            largest=given.largest,
            progress=given.progress,
        )

    @torch.no_grad()
    def look(self, batch: Batch, submodel: Submodel, given: Given) -> Passes:
        """What `run` gives, without what a backward pass needs."""
        return self.run(batch, submodel, given)

    @torch.no_grad()
    def observe(self, batch: Batch, submodel: Submodel) -> Features:
        """The student as a teacher: its features of whole images, with no path dropped."""
        self.encoder.eval()
        features = self.encode(self.encoder, batch, submodel)
        self.encoder.train()
        return features

    def encode(self, encoder: Encoder, batch: Batch, submodel: Submodel) -> Features:
        """Features of whole images and their captions, in fp32 whatever the precision they were computed in."""
        with self._autocast(batch):
            features = encoder(batch, submodel)
        return _as_float(features)

    def _see_masked(self, batch: Batch, submodel: Submodel) -> Features:
        assert batch.mask is not None and self.mask_token is not None
        with self._autocast(batch):
            return _as_float(self.encoder.see(batch.images, submodel, Mask(batch.mask, self.mask_token)))

    def _see_local(self, batch: Batch, submodel: Submodel) -> Features:
        assert batch.local_images is not None
        with self._autocast(batch):
            return _as_float(self.encoder.see(batch.local_images, submodel))

    def _autocast(self, batch: Batch) -> torch.autocast:
        return torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self._precision == "bf16")


def _as_float(features: Features) -> Features:
    values = ((f.name, getattr(features, f.name)) for f in fields(features))
    return replace(features, **{name: value.float() for name, value in values if value is not None})
