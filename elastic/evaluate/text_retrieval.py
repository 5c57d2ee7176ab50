"""Captions and images that find each other: R@1 in both directions, by pairs and not by class.

A caption asks for the images that carry it, an image for the captions that it carries. Equal texts are one caption:
it is asked once, and any of its images is right. Beside it stands `compatibility.text_rows`, where a caption finds
any image of its *class*.

Source: the protocol of Flickr30k and COCO as in CLIP (arXiv 2103.00020) and TIPS (arXiv 2410.16512). Deviation: equal
captions are merged, as which of their images is meant cannot be known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from elastic.data.tokenizer import Tokenizer
from elastic.errors import DataError
from elastic.evaluate.embed import Embeddings, truncate
from elastic.evaluate.features import text_embeddings
from elastic.evaluate.metrics import NO_CLASS, judge, pad_classes
from elastic.model.encoder import Encoder
from elastic.submodel import Submodel


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionPairs:
    """Which captions belong to which images."""

    captions: tuple[str, ...]
    """Distinct, sorted."""
    of_image: Int[np.ndarray, "image captions"]
    """Positions of each image's captions, padded with `NO_CLASS`."""
    of_caption: Int[np.ndarray, "caption images"]
    """Positions of each caption's images, padded with `NO_CLASS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionScore:
    """R@1 of one submodel at one width, in [0, 1]."""

    submodel: Submodel
    """Of the images; the text submodel has its granularity."""
    embed_dim: int
    image_to_text: float
    text_to_image: float
    num_images: int
    """Images that ask: those with a caption."""
    num_captions: int


def caption_retrieval(
    encoder: Encoder, tokenizer: Tokenizer, images: Embeddings, captions: Sequence[Sequence[str]]
) -> list[CaptionScore]:
    """R@1 of every submodel of `images` at every trained width.

    Args:
        encoder: in eval mode.
        tokenizer: of its run.
        images: full-width embeddings by image submodel, as of `features.image_embeddings`.
        captions: those of each image; one without any is only there to be found wrongly.

    Raises:
        ConfigError: the encoder has no text tower.
        DataError: no image has a caption.
    """
    pairs = pair_captions(captions)
    texts = text_embeddings(encoder, tokenizer, pairs.captions, list(images))
    cells = [(submodel, width) for submodel in images for width in encoder.space.embed_dims]
    return [_score(images[submodel], texts[submodel], pairs, submodel, width) for submodel, width in cells]


def pair_captions(captions: Sequence[Sequence[str]]) -> CaptionPairs:
    """Distinct captions, and who belongs to whom.

    Raises:
        DataError: no image has a caption.
    """
    distinct = sorted({text for texts in captions for text in texts})
    if not distinct:
        raise DataError("captions", f"none of {len(captions)} images has one", "use a set with captions")
    number = {text: position for position, text in enumerate(distinct)}
    carriers: list[list[int]] = [[] for _ in distinct]
    for image, texts in enumerate(captions):
        for text in dict.fromkeys(texts):
            carriers[number[text]].append(image)
    of_image = pad_classes([sorted({number[text] for text in texts}) for texts in captions])
    return CaptionPairs(captions=tuple(distinct), of_image=of_image, of_caption=pad_classes(carriers))


def _score(
    images: Float[np.ndarray, "image dim"],
    texts: Float[np.ndarray, "caption dim"],
    pairs: CaptionPairs,
    submodel: Submodel,
    embed_dim: int,
) -> CaptionScore:
    images, texts = truncate(images, embed_dim), truncate(texts, embed_dim)
    # Every item of an index is a class of its own, named by its position.
    asking = pairs.of_image[:, 0] != NO_CLASS
    image_to_text = judge(images[asking], pairs.of_image[asking], texts, np.arange(len(texts)))
    text_to_image = judge(texts, pairs.of_caption, images, np.arange(len(images)))
    return CaptionScore(
        submodel=submodel,
        embed_dim=embed_dim,
        image_to_text=image_to_text.recall_at_1,
        text_to_image=text_to_image.recall_at_1,
        num_images=int(asking.sum()),
        num_captions=len(texts),
    )
