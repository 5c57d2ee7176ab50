"""What flows between data, model and objectives: typed tensors with their shapes.

`Batch` is what the data pipeline hands to a step, `Features` what the encoder makes of it. Objectives read
both by field name and never ask the model for anything else. A field that a stream does not carry is `None`.
"""

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NO_LABEL = -1
"""Stands in `labels` and `caption_ids` for a row that has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One step's rows on one worker. `batch` counts views: all views of one row are adjacent."""

    images: Float[Tensor, "batch channels height width"]
    """Normalised as the model expects (`Preprocess`)."""
    row_ids: Int[Tensor, " batch"]
    """Row number inside the stream's source: what to look up to see the original."""
    domains: Int[Tensor, " batch"]
    """Index into the data set's sorted list of domain names."""
    labels: Int[Tensor, " batch"] | None = None
    """Instance class, numbered over all domains of the data set; `NO_LABEL` where there is none."""
    caption_ids: Int[Tensor, " batch"] | None = None
    """Rows made from one caption share it (SynCLR); `NO_LABEL` where there is none."""
    tokens: Int[Tensor, "captions length"] | None = None
    """Token ids of the distinct captions of this batch, padded with 0."""
    token_mask: Bool[Tensor, "captions length"] | None = None
    """True where `tokens` holds a token, False where it is padding."""
    caption_index: Int[Tensor, " batch"] | None = None
    """Which row of `tokens` belongs to each image."""

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device; copies overlap with compute when the memory is pinned."""
        moved = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    @property
    def present(self) -> frozenset[str]:
        """Names of the fields that this batch carries."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What the encoder made of a batch at one submodel. Embeddings are *not* normalised: MRL slices first."""

    embedding: Float[Tensor, "batch dim"]
    """The nested image embedding; every trained prefix is itself an embedding after L2 normalisation."""
    cls_token: Float[Tensor, "batch width"]
    """The pooled image representation before the embedding head (class token or mean of patches)."""
    patch_tokens: Float[Tensor, "batch patches width"]
    """Patch tokens after the last block's norm."""
    second_cls_token: Float[Tensor, "batch width"] | None = None
    """TIPS's second class token (timm's first register token)."""
    text_embedding: Float[Tensor, "captions dim"] | None = None
    """The nested text embedding of the batch's distinct captions, in the image embedding's space."""

    def truncate(self, embed_dim: int) -> "Features":
        """The same features with every embedding cut to its first `embed_dim` coordinates (MRL)."""
        text = self.text_embedding
        return replace(
            self,
            embedding=self.embedding[:, :embed_dim],
            text_embedding=None if text is None else text[:, :embed_dim],
        )
