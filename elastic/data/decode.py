"""From an encoded image to a canvas: a square of premultiplied RGBA that everything after works on.

A canvas is uint8 `[4, size, size]` whose colour is multiplied by alpha, so that resizing and warping it never mixes
in the colour of invisible pixels. The image keeps its aspect ratio and is centred; what it does not cover is
transparent, and takes the background's colour once there is one.
"""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from elastic.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Formats that are read. Fewer decoders mean fewer ways for a foreign file to hurt."""

DEFAULT_MAX_PIXELS = 64_000_000

_BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    NotImplementedError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on damaged files, found by feeding them truncated and flipped bytes."""


class TooManyPixels(DataError):
    """An image declares more pixels than are to be decoded."""


def decode(encoded: bytes, canvas_size: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> UInt8[np.ndarray, "4 size size"]:
    """The canvas of one encoded image; the first frame of an animation.

    Raises:
        TooManyPixels: it declares more than `max_pixels`; told from the header, before memory for its pixels is taken.
        DataError: not an image of a known format, or damaged.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            num_pixels = image.width * image.height
            if num_pixels > max_pixels:
                raise _too_large(f"{image.width} x {image.height} pixels", max_pixels)
            # A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, never below the size asked for.
            image.draft(image.mode, (canvas_size, canvas_size))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_canvas(image, canvas_size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own limits, met in the header as well.
        raise _too_large("too many pixels", max_pixels) from error
    except _BROKEN as error:
        if isinstance(error, DataError):
            raise
        problem = f"{len(encoded)} bytes that are not a readable image ({type(error).__name__}: {error})"
        raise DataError("image", problem, f"send one of {', '.join(FORMATS)}") from error


def decode_all(
    encoded: Sequence[bytes], canvas_size: int, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "images 4 size size"], Bool[np.ndarray, " images"]]:
    """Canvases of many images and which of them are broken; a broken one's canvas is transparent."""
    canvases = np.zeros((len(encoded), 4, canvas_size, canvas_size), np.uint8)
    broken = np.zeros(len(encoded), bool)
    for index, data in enumerate(encoded):
        try:
            canvases[index] = decode(data, canvas_size, max_pixels)
        except DataError:
            broken[index] = True
    return canvases, broken


def _too_large(found: str, max_pixels: int) -> TooManyPixels:
    return TooManyPixels("image", f"declares {found}, the limit is {max_pixels} pixels", "send a smaller image")


def _to_canvas(image: Image.Image, canvas_size: int) -> np.ndarray:
    if image.mode.startswith("I"):
        # 16-bit grey; Pillow's own conversion would clip instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    # Pillow takes RGB there in one step, and a colour that the file declares transparent with it.
    premultiplied = (image if image.mode == "RGB" else image.convert("RGBA")).convert("RGBa")
    longest = max(premultiplied.size)
    if longest != canvas_size:
        width, height = (max(1, round(side * canvas_size / longest)) for side in premultiplied.size)
        # Bilinear never overshoots, so colour stays at or below alpha.
        premultiplied = premultiplied.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(premultiplied).transpose(2, 0, 1)
    if pixels.shape[1:] == (canvas_size, canvas_size):
        return np.ascontiguousarray(pixels)
    canvas = np.zeros((4, canvas_size, canvas_size), np.uint8)
    top, left = ((canvas_size - side) // 2 for side in pixels.shape[1:])
    canvas[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return canvas
