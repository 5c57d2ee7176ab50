"""Embeddings in bulk: every submodel's view of a retrieval set, decoded once.

Preprocessing is the one that serving uses, so a measured quality is the quality that is served. Plain torch in this
process: for the sets that fit a retrieval test in memory, one batch loop is as fast as any pipeline.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float

from elastic.data.tokenizer import Tokenizer
from elastic.errors import DataError
from elastic.evaluate.dataset import RetrievalSet
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.model.preprocess import CANVAS_SCALE, to_model_input
from elastic.submodel import Submodel

Embeddings: TypeAlias = dict[Submodel, Float[np.ndarray, "item dim"]]
"""L2-normalised full-width embeddings, float32, by the submodel that made them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedImages:
    """Embeddings of the items of `data`; broken images are in neither."""

    data: RetrievalSet
    by_submodel: Embeddings
    num_broken: int


def embed_images(
    encoder: Encoder,
    data: RetrievalSet,
    preprocess: Preprocess,
    submodels: Sequence[Submodel],
    *,
    batch_size: int = 256,
    max_bad_fraction: float = 0.01,
    on_batch: Callable[[int], None] = lambda num_images: None,
) -> EmbeddedImages:
    """Embed every image with every submodel, on the device that the encoder is on.

    Raises:
        DataError: more than `max_bad_fraction` of the images are broken.
    """
    where = next(encoder.parameters()).device
    parts: dict[Submodel, list[np.ndarray]] = {submodel: [] for submodel in submodels}
    broken: list[np.ndarray] = []
    width = encoder.space.full_embed_dim
    for canvases, is_broken in data.canvases(CANVAS_SCALE * preprocess.image_size, batch_size):
        images = to_model_input(canvases, preprocess).to(where)
        with torch.inference_mode():
            for submodel, done in parts.items():
                done.append(encoder.encode_images(images, submodel, width).cpu().numpy())
        broken.append(is_broken)
        on_batch(len(is_broken))
    whole = ~np.concatenate(broken)
    check_broken(data, int((~whole).sum()), max_bad_fraction)
    by_submodel = {submodel: np.concatenate(done)[whole] for submodel, done in parts.items()}
    return EmbeddedImages(data=data.keep(whole), by_submodel=by_submodel, num_broken=int((~whole).sum()))


def embed_captions(
    encoder: Encoder,
    tokenizer: Tokenizer,
    captions: Sequence[str],
    submodels: Sequence[Submodel],
    *,
    batch_size: int = 256,
) -> Embeddings:
    """Embed every caption with every submodel of the text tower, on the device that the encoder is on."""
    text = encoder.config.text
    assert text is not None, "this encoder has no text tower"
    where, width = next(encoder.parameters()).device, encoder.space.full_embed_dim
    parts: dict[Submodel, list[np.ndarray]] = {submodel: [] for submodel in submodels}
    for start in range(0, len(captions), batch_size):
        tokens, mask = tokenizer.encode(captions[start : start + batch_size], text.max_tokens)
        with torch.inference_mode():
            for submodel, done in parts.items():
                done.append(encoder.encode_texts(tokens.to(where), mask.to(where), submodel, width).cpu().numpy())
    return {submodel: np.concatenate(done) for submodel, done in parts.items()}


def truncate(embeddings: Float[np.ndarray, "item dim"], embed_dim: int) -> Float[np.ndarray, "item embed_dim"]:
    """The first `embed_dim` coordinates, L2-normalised again; a zero vector stays zero."""
    cut = embeddings[:, :embed_dim]
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), np.finfo(cut.dtype).tiny)


def check_broken(data: RetrievalSet, num_broken: int, max_bad_fraction: float) -> None:
    """Accept a small share of broken images.

    Raises:
        DataError: there are more than `max_bad_fraction`.
    """
    if num_broken > max_bad_fraction * len(data):
        problem = f"{num_broken} of {len(data)} images cannot be decoded"
        raise DataError(data.source.name, problem, "repair them, or allow more with --max-bad-fraction")
