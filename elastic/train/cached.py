"""The gradient of a loss over more images than fit a backward pass, exactly.

Contrastive losses do not add up over parts of a batch. So the encoder first sees the parts without keeping
activations, the objectives give the gradient of the joint loss with respect to the features of the whole batch, and
each part is then seen again to carry its share of that gradient into the weights. One more forward pass buys the
memory of all but one part. Source: GradCache (arXiv 2101.06983).
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TypeAlias

import torch
from torch import Tensor

from elastic.batch import Batch, Features, Passes

Flat: TypeAlias = dict[tuple[str, str], Tensor]
"""Features that gradients flow through, by pass and field."""

_STUDENT = ("clean", "masked", "local")


def split(batch: Batch, num_parts: int) -> list[Batch]:
    """Parts with equally many images, give or take one; the first has the captions of all.

    Captions are encoded once, so that a caption of images in several parts is one caption.
    """
    assert 1 <= num_parts <= len(batch.images), f"{num_parts} parts of {len(batch.images)} images"
    parts = [
        _rows(batch, int(rows[0]), int(rows[-1]) + 1)
        for rows in torch.arange(len(batch.images)).tensor_split(num_parts)
    ]
    return [parts[0], *(replace(part, captions=None, synthetic_captions=None) for part in parts[1:])]


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    local = batch.local_images
    per_image = 0 if local is None else len(local) // len(batch.images)
    names = ("images", "row_ids", "domains", "labels", "caption_ids", "mask")
    values = ((name, getattr(batch, name)) for name in names)
    cut = {name: value[start:stop] for name, value in values if value is not None}
    return replace(batch, **cut, local_images=None if local is None else local[start * per_image : stop * per_image])


def flatten(passes: Passes) -> Flat:
    """The student's features of some passes."""
    flat: Flat = {}
    for name in _STUDENT:
        features: Features | None = getattr(passes, name)
        if features is not None:
            values = ((item.name, getattr(features, item.name)) for item in fields(features))
            flat |= {(name, field): value for field, value in values if value is not None}
    return flat


def join(parts: Sequence[Passes]) -> tuple[Passes, Flat]:
    """The passes over the whole batch, and their features as leaves that collect gradients."""
    flats = [flatten(part) for part in parts]
    leaves: Flat = {}
    for key in flats[0]:  # the first part has every field, its captions included
        leaves[key] = torch.cat([flat[key] for flat in flats if key in flat]).detach().requires_grad_()
    joined = {}
    for name in _STUDENT:
        own = {field: leaf for (owner, field), leaf in leaves.items() if owner == name}
        joined[name] = Features(**own) if own else None
    return replace(parts[0], **joined), leaves


def gradients(leaves: Flat, parts: Sequence[Passes]) -> list[Flat]:
    """What the leaves collected, cut into parts; fields that no objective read are left out."""
    pulls: list[Flat] = [{} for _ in parts]
    for key, leaf in leaves.items():
        if leaf.grad is None:
            continue
        start = 0
        for part, pull in zip(parts, pulls, strict=True):
            if key in (flat := flatten(part)):
                pull[key] = leaf.grad[start : start + len(flat[key])]
                start += len(flat[key])
    return pulls


def carry(passes: Passes, pull: Flat) -> Tensor:
    """A scalar whose gradient is that of the whole batch's loss with respect to one part's passes."""
    flat = flatten(passes)
    return torch.stack([(flat[key] * gradient).sum() for key, gradient in pull.items()]).sum()
