"""Contrast in the embedding space: the kernels that contrastive objectives share, and CLIP's image-text loss.

Kernels normalise what they are given, so under `Matryoshka` every prefix is sliced first and normalised after.
All of them see the rows of all workers.

Sources: InfoNCE as in CLIP (arXiv 2103.00020) figure 3. Several images per caption as in SynCLR (arXiv 2312.17742):
the target of a row is uniform over its positives, so the least possible value is the log of their number.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from elastic.batch import NO_LABEL, Batch, Captions, Passes
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions, Objective, ObjectiveConfig, Terms
from elastic.objectives.distributed import gather, gather_with_grad

_HASH_FACTOR = 6364136223846793005
"""An odd 64-bit multiplier (Knuth's MMIX generator); products wrap around."""


def nce(logits: Float[Tensor, "queries keys"], positives: Bool[Tensor, "queries keys"]) -> Float[Tensor, ""]:
    """The mean of `nce_rows`; rows without a positive do not count, and it is zero when there is none at all."""
    return nce_rows(logits, positives).sum() / positives.any(dim=1).sum().clamp(min=1)


def nce_rows(
    logits: Float[Tensor, "queries keys"], positives: Bool[Tensor, "queries keys"]
) -> Float[Tensor, " queries"]:
    """Cross-entropy of each row to the uniform distribution over its positives; zero for rows without any."""
    counts = positives.sum(dim=1).clamp(min=1)
    return -torch.where(positives, logits.log_softmax(dim=1), 0).sum(dim=1) / counts


def info_nce(
    images: Float[Tensor, "images dim"],
    texts: Float[Tensor, "texts dim"],
    matches: Bool[Tensor, "images texts"],
    temperature: float | Float[Tensor, ""],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Image-to-text and text-to-image terms; `matches` says which text describes which image."""
    logits = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T / temperature
    return nce(logits, matches), nce(logits.T, matches.T)


def multi_positive_nce(
    embeddings: Float[Tensor, "batch dim"], labels: Int[Tensor, " batch"], temperature: float
) -> Float[Tensor, ""]:
    """Every other row of a row's label is its positive, all other rows its negatives; a row never meets itself.

    Rows labelled `NO_LABEL` are negatives only.
    """
    normalised = F.normalize(embeddings, dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    lowest = torch.finfo(normalised.dtype).min  # finite, so that a row alone in its batch has no NaN
    logits = (normalised @ normalised.T / temperature).masked_fill(itself, lowest)
    same = (labels[:, None] == labels[None, :]) & (labels != NO_LABEL)[:, None]
    return nce(logits, same & ~itself)


def caption_keys(tokens: Int[Tensor, "captions length"]) -> Int[Tensor, " captions"]:
    """A 64-bit hash of each caption's tokens that does not depend on padding, to find equal ones across workers."""
    factors = torch.full((tokens.shape[1],), _HASH_FACTOR, dtype=torch.int64, device=tokens.device).cumprod(dim=0)
    return (tokens.to(torch.int64) * factors).sum(dim=1)


def caption_matches(captions: Captions) -> Bool[Tensor, "all_images all_captions"]:
    """Which captions of all workers describe which of all their images; equal captions describe the same images."""
    text_keys = caption_keys(captions.tokens)
    image_keys = gather(text_keys[captions.index.clamp(min=0)])
    has_caption = gather(captions.index != NO_LABEL)
    return (image_keys[:, None] == gather(text_keys)[None, :]) & has_caption[:, None]


class Temperature(nn.Module):
    """A learned softmax temperature. Called without arguments, gives its value.

    `bound`, after every update, keeps the value from falling too low, and not its gradient, so that it can always
    come back. The parameter has one axis, because what has none cannot be sharded.
    """

    def __init__(self, start: float, lowest: float) -> None:
        super().__init__()
        self.log_temperature = nn.Parameter(torch.tensor([math.log(start)]))
        self._lowest = lowest

    def forward(self) -> Float[Tensor, ""]:
        """The temperature."""
        return self.log_temperature.exp().squeeze(0)

    @torch.no_grad()
    def bound(self) -> None:
        """Raise it to the lowest that is allowed."""
        self.log_temperature.clamp_(min=math.log(self._lowest))


def global_image_text(
    images: Float[Tensor, "images dim"],
    texts: Float[Tensor, "texts dim"] | None,
    captions: Captions | None,
    temperature: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Mean of both directions of InfoNCE over the rows of all workers, images of one caption sharing it.

    Raises:
        ConfigError: there are no text embeddings, because the encoder has no text tower.
    """
    if texts is None:
        raise ConfigError("model.text", None, "an image-text objective needs a text tower")
    assert captions is not None, "the joint loss skips batches without captions"
    matches = caption_matches(captions)
    to_text, to_image = info_nce(gather_with_grad(images), gather_with_grad(texts), matches, temperature)
    return (to_text + to_image) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageText(ObjectiveConfig):
    """CLIP: an image and its caption attract, all other pairs of the global batch repel."""

    temperature: float = 0.07
    """Softmax temperature at the start; it is learned."""
    min_temperature: float = 0.01
    """Learning cannot go below it (CLIP: a logit scale of at most 100)."""

    def __post_init__(self) -> None:
        ObjectiveConfig.__post_init__(self)
        if not 0 < self.min_temperature <= self.temperature:
            raise ConfigError("temperature", self.temperature, f"must be >= min_temperature={self.min_temperature} > 0")

    @property
    def needs(self) -> frozenset[str]:
        """Captions."""
        return frozenset({"captions"})

    def build(self, dims: Dimensions) -> "ImageTextLoss":
        """The loss with its temperature."""
        return ImageTextLoss(self)


class ImageTextLoss(Objective):
    """Mean of both directions of InfoNCE, images of one caption sharing it as their positive."""

    def __init__(self, config: ImageText) -> None:
        super().__init__()
        self.temperature = Temperature(config.temperature, config.min_temperature)

    def forward(self, passes: Passes, batch: Batch) -> Terms:
        """`nce`: starts near the log of the number of captions, and of images, in the global batch.

        Raises:
            ConfigError: the encoder has no text tower.
        """
        student = passes.clean
        nce = global_image_text(student.embedding, student.text_embedding, batch.captions, self.temperature())
        return {"nce": nce}

    def after_step(self, decay: float) -> None:
        """Keep the temperature above its bound."""
        self.temperature.bound()
