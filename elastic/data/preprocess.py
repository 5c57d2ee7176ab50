"""From decoded canvases to model input: the one deterministic path that evaluation and serving share."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from elastic.model.config import Preprocess


def to_model_input(
    canvases: UInt8[Tensor, "batch 4 height width"], preprocess: Preprocess
) -> Float[Tensor, "batch 3 size size"]:
    """Normalised images: composited on the background, resized by area, then mean and std.

    `canvases` are what `decode` returns: square, colour already multiplied by alpha.
    """
    pixels = canvases.float()
    background = torch.tensor(preprocess.background, dtype=torch.float32).view(3, 1, 1)
    opaque = pixels[:, :3] + background * (1 - pixels[:, 3:] / 255)
    size = preprocess.image_size
    if opaque.shape[-1] != size:
        # Antialiased: the mean of the source pixels below each target pixel when shrinking by a whole factor.
        mode = "area" if opaque.shape[-1] % size == 0 else "bilinear"
        kwargs = {} if mode == "area" else {"antialias": True, "align_corners": False}
        opaque = F.interpolate(opaque, size=(size, size), mode=mode, **kwargs)
    return _normalise(opaque, preprocess)


def normalise(
    images: UInt8[Tensor, "batch 3 height width"], preprocess: Preprocess
) -> Float[Tensor, "batch 3 height width"]:
    """Augmented 8-bit images as the model expects them."""
    return _normalise(images.float(), preprocess)


def _normalise(
    pixels: Float[Tensor, "batch 3 height width"], preprocess: Preprocess
) -> Float[Tensor, "batch 3 height width"]:
    mean = torch.tensor(preprocess.mean).view(3, 1, 1) * 255
    std = torch.tensor(preprocess.std).view(3, 1, 1) * 255
    return (pixels - mean) / std
