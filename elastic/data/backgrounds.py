"""Procedural backgrounds for composed images: two near colours, mixed by a gradient or a texture.

They are calmer than what stands in front of them: both colours have the same hue family and differ little, so that
a texture is there to be seen through and not to be taken for a thing.
"""

import colorsys
from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from PIL import Image

MAX_SATURATION = 0.45
VALUE_RANGE = (0.25, 0.97)
"""Darkest and lightest first colour; black and white outlines stay visible on both."""
VALUE_CONTRAST = (0.06, 0.2)
"""How much lighter or darker the second colour is."""
HUE_CONTRAST = 0.08
MAX_GRAIN = 5.0
"""Standard deviation of the noise of single pixels, in 8-bit levels."""


def draw_background(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size 3"]:
    """A square background of a random kind in random colours, as 8-bit levels not yet rounded."""
    first, second = _colours(rng)
    mixed = KINDS[rng.integers(len(KINDS))](rng, size)[..., None]
    pixels = first + (second - first) * mixed
    grain = rng.normal(0, rng.uniform(0, MAX_GRAIN), (size, size, 1)) if rng.random() < 0.5 else 0.0
    return np.clip(pixels + grain, 0, 255)


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    hue, saturation, value = rng.random(), rng.uniform(0, MAX_SATURATION), rng.uniform(*VALUE_RANGE)
    change = rng.uniform(*VALUE_CONTRAST)
    # Towards the middle, so that the second colour keeps its distance from black and white.
    other = value - change if value > 0.6 else value + change
    shades = ((hue, value), (hue + rng.uniform(-HUE_CONTRAST, HUE_CONTRAST), other))
    first, second = (255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value)) for hue, value in shades)
    return first, second


def ramp(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """From one side to the opposite one, in any direction."""
    along = _coordinate(rng, size)
    return (along - along.min()) / (along.max() - along.min())


def glow(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """From a point outwards."""
    top, left = rng.uniform(0, size, 2)
    rows, columns = np.ogrid[:size, :size]
    distance = np.hypot(rows - top, columns - left)
    return distance / distance.max()


def stripes(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Soft bands in any direction."""
    period = rng.uniform(0.1, 0.4) * size
    return 0.5 + 0.5 * np.sin(2 * np.pi * _coordinate(rng, size) / period)


def checks(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """A turned chessboard."""
    cell = rng.uniform(0.08, 0.25) * size
    angle = rng.uniform(0, np.pi)
    first, second = (np.floor(_along(size, turned) / cell) for turned in (angle, angle + np.pi / 2))
    return (first + second) % 2


def dots(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Round spots on a grid."""
    pitch = rng.uniform(0.1, 0.25) * size
    rows, columns = (np.cos(2 * np.pi * (np.arange(size) / pitch + rng.random())) for _ in range(2))
    return (rows[:, None] + columns[None, :] > 1).astype(np.float64)


def clouds(rng: np.random.Generator, size: int) -> Float[np.ndarray, "size size"]:
    """Smooth blotches: a coarse grid of noise, enlarged."""
    coarse = int(rng.integers(4, 13))
    noise = Image.fromarray(rng.random((coarse, coarse), np.float32))
    smooth = np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC), np.float64)
    return np.clip(smooth, 0, 1)


KINDS: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (ramp, glow, stripes, checks, dots, clouds)
"""How the two colours are mixed: 0 is the first, 1 the second."""


def _coordinate(rng: np.random.Generator, size: int) -> np.ndarray:
    return _along(size, rng.uniform(0, 2 * np.pi))


def _along(size: int, angle: float) -> np.ndarray:
    rows, columns = np.ogrid[:size, :size]
    return rows * np.sin(angle) + columns * np.cos(angle)
