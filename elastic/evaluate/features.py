"""Frozen features of a whole set, one submodel at a time: what probes and nearest neighbours are fitted on.

Images are decoded once (`read_images`) with the preprocessing that serving uses; each submodel then sees the same
tensor. Features stay on the encoder's device, embeddings come back as arrays.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from elastic.batch import Features
from elastic.data.decode import decode_all
from elastic.data.source import Source
from elastic.data.tokenizer import Tokenizer
from elastic.errors import ConfigError, DataError
from elastic.evaluate.embed import Embeddings, embed_captions
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.model.preprocess import CANVAS_SCALE, to_model_input
from elastic.model.vit import embed_second
from elastic.submodel import Submodel

GlobalToken: TypeAlias = Literal["cls_token", "second_cls_token"]
"""Which global feature: the pooled one (first class token or mean of patches), or TIPS's second class token."""


def read_images(
    source: Source, row_ids: Int[np.ndarray, " image"], preprocess: Preprocess, *, batch_size: int = 256
) -> Float[Tensor, "image 3 size size"]:
    """The rows' images as model input.

    Raises:
        DataError: one of them is broken.
    """
    parts: list[Tensor] = []
    for start in range(0, len(row_ids), batch_size):
        rows = row_ids[start : start + batch_size]
        canvases, broken = decode_all(source.read_images(rows), CANVAS_SCALE * preprocess.image_size)
        if broken.any():
            problem = f"rows {rows[broken][:5].tolist()} cannot be decoded"
            raise DataError(source.name, problem, "repair them, or leave them out of the rows that are read")
        parts.append(to_model_input(torch.from_numpy(canvases), preprocess))
    return torch.cat(parts)


def patch_features(
    encoder: Encoder,
    images: Float[Tensor, "image 3 size size"],
    submodel: Submodel,
    *,
    token: GlobalToken = "cls_token",
    batch_size: int = 256,
) -> Float[Tensor, "image patch dim"]:
    """Each patch's token after the last block, concatenated with its image's global token.

    Source: SigLIP 2 (arXiv 2502.14786) and TIPS (arXiv 2410.16512), dense linear probes.
    """
    parts: list[Tensor] = []
    for features in _forward(encoder, images, submodel, batch_size):
        patches, pooled = features.patch_tokens, _global(features, token)
        parts.append(torch.cat([patches, pooled[:, None].expand_as(patches)], dim=2))
    return torch.cat(parts)


def global_features(
    encoder: Encoder,
    images: Float[Tensor, "image 3 size size"],
    submodel: Submodel,
    *,
    token: GlobalToken = "cls_token",
    batch_size: int = 256,
) -> Float[np.ndarray, "image width"]:
    """The global token before the embedding head, not normalised: what classifiers are fitted on."""
    parts = [_global(features, token) for features in _forward(encoder, images, submodel, batch_size)]
    return torch.cat(parts).cpu().numpy()


def image_embeddings(
    encoder: Encoder,
    images: Float[Tensor, "image 3 size size"],
    submodels: Sequence[Submodel],
    *,
    token: GlobalToken = "cls_token",
    batch_size: int = 256,
) -> Embeddings:
    """L2-normalised full-width embeddings of a global token by submodel; `embed.truncate` cuts them.

    Raises:
        ConfigError: the encoder has no such token.
    """
    device = next(encoder.parameters()).device
    found: Embeddings = {}
    for submodel in submodels:
        with torch.inference_mode():
            parts = [_embed(encoder, part.to(device), submodel, token) for part in images.split(batch_size)]
        found[submodel] = torch.cat(parts).cpu().numpy()
    return found


def text_embeddings(
    encoder: Encoder, tokenizer: Tokenizer, texts: Sequence[str], submodels: Sequence[Submodel]
) -> Embeddings:
    """The texts by *image* submodel: each reads them at the text submodel of its granularity.

    Raises:
        ConfigError: the encoder has no text tower.
    """
    if encoder.text_space is None:
        raise ConfigError("encoder.text", None, "texts need an encoder with a text tower")
    readers = {submodel: encoder.space.translate(submodel, encoder.text_space) for submodel in submodels}
    by_reader = embed_captions(encoder, tokenizer, texts, list(dict.fromkeys(readers.values())))
    return {submodel: by_reader[reader] for submodel, reader in readers.items()}


def _forward(encoder: Encoder, images: Tensor, submodel: Submodel, batch_size: int) -> Iterator[Features]:
    device = next(encoder.parameters()).device
    for part in images.split(batch_size):
        # Not inference_mode: probes are fitted on these tensors.
        with torch.no_grad():
            features = encoder.see(part.to(device), submodel)
        yield features


def _embed(encoder: Encoder, images: Tensor, submodel: Submodel, token: GlobalToken) -> Float[Tensor, "image dim"]:
    if token == "cls_token":
        return encoder.encode_images(images, submodel, encoder.space.full_embed_dim)
    embedding = embed_second(encoder.image, encoder.see(images, submodel)).second_embedding
    return F.normalize(_present(embedding, token).float(), dim=1)


def _global(features: Features, token: GlobalToken) -> Tensor:
    return _present(features.cls_token if token == "cls_token" else features.second_cls_token, token)


def _present(found: Tensor | None, token: GlobalToken) -> Tensor:
    if found is None:
        raise ConfigError("token", token, "this encoder has one class token; use cls_token")
    return found
