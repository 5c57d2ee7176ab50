"""Zero-shot classification: an image gets the class whose text is nearest to it.

Each class name is put into every template, and each of these texts is embedded and L2-normalised; the class is their
mean, normalised again. The image's class is the one of largest cosine, and top-1 the share of images that get their
own. At a narrower width every embedding is cut and normalised first, then averaged. Image and text submodels have the
same granularity.

Source: CLIP (arXiv 2103.00020) section 3.1.4, prompt ensembling in embedding space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from elastic.data.tokenizer import Tokenizer
from elastic.errors import ConfigError
from elastic.evaluate.embed import Embeddings, truncate
from elastic.evaluate.features import text_embeddings
from elastic.model.encoder import Encoder
from elastic.submodel import Submodel

TEMPLATES = ("{}", "a {}", "a picture of a {}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroShotScore:
    """Top-1 of one submodel at one width, in [0, 1]; chance is one over the number of classes."""

    submodel: Submodel
    """Of the images; the text submodel has its granularity."""
    embed_dim: int
    top1: float
    num_classes: int
    num_images: int


def zero_shot(
    encoder: Encoder,
    tokenizer: Tokenizer,
    images: Embeddings,
    classes: Int[np.ndarray, " image"],
    names: Sequence[str],
    templates: Sequence[str] = TEMPLATES,
) -> list[ZeroShotScore]:
    """Top-1 of every submodel of `images` at every trained width.

    Args:
        encoder: in eval mode.
        tokenizer: of its run.
        images: full-width embeddings by image submodel, as of `features.image_embeddings`.
        classes: class number of each image.
        names: the class numbers' names.
        templates: texts with `{}` where the name goes.

    Raises:
        ConfigError: no template, one without a place for the name, or an encoder without a text tower.
    """
    texts = text_embeddings(encoder, tokenizer, prompts(names, templates), list(images))
    scores: list[ZeroShotScore] = []
    for submodel, embedded in images.items():
        for width in encoder.space.embed_dims:
            of_class = class_embeddings(texts[submodel], len(names), width)
            found = (truncate(embedded, width) @ of_class.T).argmax(axis=1)
            scores.append(
                ZeroShotScore(
                    submodel=submodel,
                    embed_dim=width,
                    top1=float((found == classes).mean()),
                    num_classes=len(names),
                    num_images=len(classes),
                )
            )
    return scores


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All texts of the first class, then all of the second, and so on."""
    if not templates or any("{}" not in template for template in templates):
        raise ConfigError("templates", tuple(templates), "needs at least one, each with {} where the name goes")
    return [template.replace("{}", name) for name in names for template in templates]


def class_embeddings(
    texts: Float[np.ndarray, "text dim"], num_classes: int, embed_dim: int
) -> Float[np.ndarray, "class embed_dim"]:
    """The normalised mean of each class's texts, in the order of `prompts`."""
    cut = truncate(texts, embed_dim).reshape(num_classes, -1, embed_dim)
    return truncate(cut.mean(axis=1), embed_dim)
