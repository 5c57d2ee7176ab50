"""What flows between data, model and objectives: typed tensors with their shapes.

`Batch` is what the data pipeline hands to a step, `Features` what the encoder makes of images and captions, `Passes`
what all encoder passes of one step made. Objectives read them by field name and never ask the model for anything
else. A field that a stream does not carry, or a pass that no objective asked for, is `None`.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NO_LABEL = -1
"""Stands in `labels` and `caption_ids` for a row that has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Captions:
    """The distinct captions of a batch, and which image each describes."""

    tokens: Int[Tensor, "captions length"]
    """Token ids, padded with 0."""
    mask: Bool[Tensor, "captions length"]
    """True where `tokens` holds a token, False where it is padding."""
    index: Int[Tensor, " batch"]
    """Which row of `tokens` belongs to each image; `NO_LABEL` where none does."""

    def to(self, device: torch.device | str) -> "Captions":
        """The same captions on another device."""
        return Captions(
            tokens=self.tokens.to(device, non_blocking=True),
            mask=self.mask.to(device, non_blocking=True),
            index=self.index.to(device, non_blocking=True),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One step's rows on one worker. `batch` counts views: all views of one row are adjacent."""

    images: Float[Tensor, "batch channels height width"]
    """Normalised as the model expects (`Preprocess`)."""
    row_ids: Int[Tensor, " batch"]
    """Row number inside the stream's source: what to look up to see the original."""
    domains: Int[Tensor, " batch"]
    """Index into the data set's sorted list of domain names."""
    stream: int = 0
    """Place of the stream that all rows come from, in the order of the configuration."""
    labels: Int[Tensor, " batch"] | None = None
    """Instance class, numbered over all domains of the data set; `NO_LABEL` where there is none."""
    caption_ids: Int[Tensor, " batch"] | None = None
    """Rows made from one caption share it (SynCLR); `NO_LABEL` where there is none."""
    captions: Captions | None = None
    """What people wrote; a mix with the machine-made ones where a stream does not keep them apart."""
    synthetic_captions: Captions | None = None
    """Machine-made captions, in streams that keep them apart (TIPS)."""
    local_images: Float[Tensor, "locals channels small small"] | None = None
    """Small crops of every image, the same number of each, those of one image adjacent; normalised."""
    mask: Bool[Tensor, "batch patches"] | None = None
    """Patches that the masked pass hides, drawn by the training step."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device; copies overlap with compute when the memory is pinned."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        moved = {name: value.to(device, non_blocking=True) for name, value in values if isinstance(value, Tensor)}
        texts = {name: None if text is None else text.to(device) for name, text in self._texts()}
        return replace(self, **moved, **texts)

    def _texts(self) -> tuple[tuple[str, Captions | None], ...]:
        return ("captions", self.captions), ("synthetic_captions", self.synthetic_captions)

    @property
    def present(self) -> frozenset[str]:
        """Names of the tensors and captions that this batch carries."""
        return frozenset(f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor | Captions))


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What the encoder made of images at one submodel. Embeddings are *not* normalised: MRL slices first."""

    embedding: Float[Tensor, "batch dim"]
    """The nested image embedding; every trained prefix is itself an embedding after L2 normalisation."""
    cls_token: Float[Tensor, "batch width"]
    """The pooled image representation before the embedding head (class token or mean of patches)."""
    patch_tokens: Float[Tensor, "batch patches width"]
    """Patch tokens after the last block's norm."""
    second_embedding: Float[Tensor, "batch dim"] | None = None
    """The same head applied to TIPS's second class token."""
    second_cls_token: Float[Tensor, "batch width"] | None = None
    """TIPS's second class token (timm's first register token)."""
    text_embedding: Float[Tensor, "captions dim"] | None = None
    """The nested embedding of the batch's distinct captions, in the image embedding's space."""
    second_text_embedding: Float[Tensor, "synthetic_captions dim"] | None = None
    """The same of its synthetic captions, where they are kept apart."""

    def truncate(self, embed_dim: int) -> "Features":
        """The same features with every embedding cut to its first `embed_dim` coordinates (MRL)."""
        names = ("embedding", "second_embedding", "text_embedding", "second_text_embedding")
        values = ((name, getattr(self, name)) for name in names)
        return replace(self, **{name: value[:, :embed_dim] for name, value in values if value is not None})

    def detach(self) -> "Features":
        """The same features without their gradients."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return replace(self, **{name: value.detach() for name, value in values if value is not None})


PassName: TypeAlias = Literal["masked", "local", "teacher", "largest"]
"""An encoder pass that is made only where an objective asks for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Passes:
    """What the encoder passes of one step made, each run once and read by every objective that asked for it."""

    clean: Features
    """The student at the step's submodel, on whole images; always there, and the only one with captions."""
    masked: Features | None = None
    """The student on the same images with `Batch.mask` hidden."""
    local: Features | None = None
    """The student on `Batch.local_images`."""
    teacher: Features | None = None
    """The teacher at the full submodel on whole images, without gradient."""
    largest: Features | None = None
    """The student at the full submodel on whole images, without gradient; in smaller submodels' passes only."""
    progress: float = 0.0
    """Share of the run's updates taken before this step; schedules follow it."""

    def truncate(self, embed_dim: int) -> "Passes":
        """The same passes with every embedding cut to its first `embed_dim` coordinates (MRL)."""
        names = ("clean", "masked", "local", "teacher", "largest")
        values = ((name, getattr(self, name)) for name in names)
        return replace(self, **{name: value.truncate(embed_dim) for name, value in values if value is not None})
