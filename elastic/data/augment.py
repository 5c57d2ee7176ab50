"""Random views of canvases: one affine warp, one colour transform, and a background, for a whole batch at once.

What happens to each view is drawn first (`draw_views`), for the views of *all* workers, and then applied to any
part of them (`augment`). So a view does not depend on how many workers share the batch. Composition on the
background, brightness, contrast, saturation and hue are linear in the pixel, so they are one matrix per view.
"""

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from elastic.errors import ConfigError

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """How far a view may be from its image. The defaults suit drawings; `AugmentConfig.identity()` changes nothing."""

    scale: tuple[float, float] = (0.75, 1.25)
    """Smallest and largest part of the canvas that is seen, as a ratio of its side; above 1 shrinks the object."""
    aspect: float = 0.2
    """Largest natural logarithm of the change in aspect ratio, either way."""
    rotation_deg: float = 20.0
    """Largest rotation either way, in degrees."""
    rotation_probability: float = 0.5
    """Share of views that are rotated."""
    shift: float = 0.2
    """Largest shift either way, as a ratio of half the side."""
    shear: float = 0.15
    """Largest horizontal shear either way."""
    flip_probability: float = 0.3
    """Share of views that are mirrored."""
    background_probability: float = 0.5
    """Share of views on a random colour; the others are on white."""
    brightness: float = 0.3
    """Largest relative change of brightness, either way."""
    contrast: float = 0.3
    """Largest relative change of the distance from the view's mean, either way."""
    saturation: float = 0.6
    """Largest relative change of the distance from grey, either way."""
    grey_probability: float = 0.1
    """Share of views without colour."""
    hue_deg: float = 20.0
    """Largest turn of the colours around the grey axis, either way, in degrees."""
    hue_probability: float = 0.5
    """Share of views whose hue turns."""
    blur_probability: float = 0.0
    """Share of views that a 3 x 3 mean softens."""
    erase_probability: float = 0.0
    """Share of views with a rectangle of a random colour in them."""
    erase_size: tuple[float, float] = (0.2, 0.5)
    """Smallest and largest side of that rectangle, as a ratio of the view's side."""

    def __post_init__(self) -> None:
        for name in ("scale", "erase_size"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ConfigError(f"augment.{name}", (low, high), "must be positive and ascending")
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_probability") and not 0 <= value <= 1:
                raise ConfigError(f"augment.{item.name}", value, "must be between 0 and 1")
            if item.name in ("aspect", "rotation_deg", "shift", "shear", "hue_deg") and value < 0:
                raise ConfigError(f"augment.{item.name}", value, "must not be negative")
            if item.name in ("brightness", "contrast", "saturation") and not 0 <= value <= 1:
                raise ConfigError(f"augment.{item.name}", value, "must be between 0 and 1")

    @classmethod
    def identity(cls) -> "AugmentConfig":
        """Views that are the image itself on white."""
        return cls(
            scale=(1.0, 1.0),
            aspect=0.0,
            rotation_probability=0.0,
            shift=0.0,
            shear=0.0,
            flip_probability=0.0,
            background_probability=0.0,
            brightness=0.0,
            contrast=0.0,
            saturation=0.0,
            grey_probability=0.0,
            hue_probability=0.0,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """What is done to each view of a batch."""

    warp: Float[Tensor, "views 2 3"]
    """From output to input coordinates in [-1, 1], as `affine_grid` takes it."""
    background: Float[Tensor, "views 3"]
    """In [0, 255]."""
    gain: Float[Tensor, " views"]
    """Brightness."""
    contrast: Float[Tensor, " views"]
    colour: Float[Tensor, "views 3 3"]
    """Saturation, then hue."""
    is_blurred: Bool[Tensor, " views"]
    erase_box: Float[Tensor, "views 4"]
    """Left, top, right, bottom in [0, 1]; empty for views that keep everything."""
    erase_colour: Float[Tensor, "views 3"]

    def part(self, start: int, stop: int) -> "Views":
        """The views `start` to `stop`, of one worker."""
        return Views(**{item.name: getattr(self, item.name)[start:stop] for item in fields(self)})


def draw_views(config: AugmentConfig, num_views: int, seed: int) -> Views:
    """The random choices for `num_views` views: a pure function of its arguments."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand((num_views, *shape), generator=generator) * (high - low) + low

    def chance(probability: float) -> Tensor:
        return torch.rand(num_views, generator=generator) < probability

    turn = uniform(-config.rotation_deg, config.rotation_deg) * chance(config.rotation_probability)
    flip = torch.where(chance(config.flip_probability), -1.0, 1.0)
    warp = _warp(
        scale=uniform(*config.scale),
        aspect=uniform(-config.aspect, config.aspect).exp(),
        turn=turn.deg2rad(),
        shear=uniform(-config.shear, config.shear),
        shift=uniform(-config.shift, config.shift, 2),
        flip=flip,
    )
    random_background = uniform(0, 255, 3)
    background = torch.where(chance(config.background_probability)[:, None], random_background, torch.tensor(255.0))
    saturation = uniform(1 - config.saturation, 1 + config.saturation) * ~chance(config.grey_probability)
    hue = uniform(-config.hue_deg, config.hue_deg) * chance(config.hue_probability)
    corner, side = uniform(0, 1, 2), uniform(*config.erase_size, 2) * chance(config.erase_probability)[:, None]
    return Views(
        warp=warp,
        background=background,
        gain=uniform(1 - config.brightness, 1 + config.brightness),
        contrast=uniform(1 - config.contrast, 1 + config.contrast),
        colour=_turn_hue(hue.deg2rad()) @ _saturate(saturation),
        is_blurred=chance(config.blur_probability),
        erase_box=torch.cat([corner - side / 2, corner + side / 2], dim=1),
        erase_colour=uniform(0, 255, 3),
    )


def augment(
    canvases: UInt8[Tensor, "images 4 side side"], image_size: int, views: Views
) -> UInt8[Tensor, "views 3 size size"]:
    """The views of canvases, all views of one image adjacent.

    `views` holds a whole number of views per canvas.
    """
    num_views = len(views.gain)
    assert num_views % len(canvases) == 0, (num_views, len(canvases))
    pixels = canvases.float()
    # Shrinking first is the antialiasing, and a quarter of the work for each factor of two.
    factor = canvases.shape[-1] // image_size
    if factor > 1:
        pixels = F.avg_pool2d(pixels, factor)
    pixels = pixels.repeat_interleave(num_views // len(canvases), dim=0)
    grid = F.affine_grid(views.warp, [num_views, 4, image_size, image_size], align_corners=False)
    warped = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    images = _colour(warped, views)
    if bool(views.is_blurred.any()):
        soft = F.avg_pool2d(F.pad(images[views.is_blurred], (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        images[views.is_blurred] = soft
    _erase(images, views)
    return images.round_().clamp_(0, 255).to(torch.uint8)


def _warp(*, scale: Tensor, aspect: Tensor, turn: Tensor, shear: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    cos, sin = turn.cos(), turn.sin()
    first = torch.stack([scale * aspect * cos * flip, shear - scale * sin, shift[:, 0]], dim=1)
    second = torch.stack([scale * sin * flip, scale / aspect * cos, shift[:, 1]], dim=1)
    return torch.stack([first, second], dim=1)


def _saturate(amount: Tensor) -> Tensor:
    """Matrices that move colours away from (above 1) or towards (below 1) their grey."""
    grey = torch.tensor(_LUMA).expand(3, 3)
    return grey + amount[:, None, None] * (torch.eye(3) - grey)


def _turn_hue(angle: Tensor) -> Tensor:
    """Rotations around the grey axis (Rodrigues' formula)."""
    k = 1 / math.sqrt(3)
    cross = torch.tensor([[0.0, -k, k], [k, 0.0, -k], [-k, k, 0.0]])
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * torch.eye(3) + sin * cross + (1 - cos) * torch.full((3, 3), 1 / 3)


def _colour(warped: Tensor, views: Views) -> Tensor:
    """Composite on the background, brightness, contrast around the view's mean, saturation and hue.

    With `c` premultiplied colour, `a` alpha in [0, 255], `b` background, `m` the composite's mean, `g` gain and `k`
    contrast: `colour @ (k g (c + b (1 - a / 255)) + (1 - k) g m)`, one matrix product per view.
    """
    num_views, _, height, width = warped.shape
    means = warped.mean(dim=(2, 3))
    background = views.background
    mean = (means[:, :3] + background * (1 - means[:, 3:] / 255)).mean(dim=1)
    strength = (views.contrast * views.gain)[:, None]
    offset = strength * background + ((1 - views.contrast) * views.gain * mean)[:, None]
    mix = torch.cat([strength[..., None] * torch.eye(3), -(strength * background / 255)[..., None]], dim=2)
    coloured = torch.baddbmm(views.colour @ offset[..., None], views.colour @ mix, warped.flatten(2))
    return coloured.view(num_views, 3, height, width)


def _erase(images: Tensor, views: Views) -> None:
    """Fill each view's rectangle in place."""
    chosen = (views.erase_box[:, 2] > views.erase_box[:, 0]).nonzero().flatten()
    if len(chosen) == 0:
        return
    centres = (torch.arange(images.shape[-1]) + 0.5) / images.shape[-1]
    left, top, right, bottom = (edge[:, None] for edge in views.erase_box[chosen].unbind(dim=1))
    rows, columns = (centres > top) & (centres < bottom), (centres > left) & (centres < right)
    inside = (rows[:, :, None] & columns[:, None, :])[:, None]
    images[chosen] = torch.where(inside, views.erase_colour[chosen][:, :, None, None], images[chosen])
