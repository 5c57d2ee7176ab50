"""From decoded canvases to model input: the one deterministic path that evaluation and serving share.

Part of the model, because serving runs it as the first step of every traced call (`traced.py`).
"""

from functools import lru_cache, reduce

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from elastic.model.config import Preprocess

CANVAS_CHANNELS = 4
"""Red, green, blue, alpha."""

CANVAS_SCALE = 2
"""Side of the decoded canvas over side of the model input; a whole factor, so that shrinking averages whole pixels."""


def to_model_input(
    canvases: UInt8[Tensor, "batch 4 height width"], preprocess: Preprocess
) -> Float[Tensor, "batch 3 size size"]:
    """Normalised images: composited on the background, resized by area, then mean and std.

    `canvases` are what `data.decode.decode` returns: square, colour already multiplied by alpha.
    """
    # Resizing and compositing are both linear, so their order is free: smaller first costs less.
    pixels = _resized(canvases.float(), preprocess.image_size)
    background = torch.tensor(preprocess.background, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
    opaque = pixels[:, :3] + background * (1 - pixels[:, 3:] / 255)
    scale, shift = (part.to(pixels.device) for part in _scale_and_shift(preprocess))
    return opaque * scale + shift


def _resized(pixels: Float[Tensor, "batch 4 height width"], size: int) -> Float[Tensor, "batch 4 size size"]:
    """Antialiased: the mean of the source pixels below each target pixel when shrinking by a whole factor."""
    factor, rest = divmod(int(pixels.shape[-1]), size)  # while it is traced, a shape holds tensors
    if rest:
        return F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    # Sums of strided views: torch's pooling kernels take three times as long on one thread.
    rows = reduce(torch.add, (pixels[..., row::factor, :] for row in range(factor)))
    return reduce(torch.add, (rows[..., column::factor] for column in range(factor))) / factor**2


def normalise(
    images: UInt8[np.ndarray, "batch 3 height width"], preprocess: Preprocess
) -> Float[np.ndarray, "batch 3 height width"]:
    """Augmented 8-bit images as the model expects them.

    In numpy, because it runs beside the training step: torch would spread it over the cores that the step uses.
    """
    scale, shift = _scale_and_shift(preprocess)
    pixels = images.astype(np.float32)
    pixels *= scale.numpy()
    pixels += shift.numpy()
    return pixels


@lru_cache(maxsize=8)
def _scale_and_shift(preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Per channel, so that `pixel * scale + shift` is `(pixel / 255 - mean) / std`."""
    std = torch.tensor(preprocess.std).view(3, 1, 1)
    return 1 / (255 * std), -torch.tensor(preprocess.mean).view(3, 1, 1) / std
