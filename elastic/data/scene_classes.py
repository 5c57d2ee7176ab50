"""Which icons appear in `scenes`: the classes, chosen by the rule of `elastic.data.scenes`, and their cut-outs."""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from elastic.data import schema
from elastic.data.decode import decode
from elastic.data.icons import BUNDLED_ICONS, IMAGE_SIZE
from elastic.data.scenes import CATEGORIES, SceneConfig
from elastic.errors import ConfigError

HALF_COVERED = 128
"""Alpha from which on a pixel belongs to an object."""

_NUM_TRAIN_DRAWINGS, _NUM_VAL_DRAWINGS = 5, 1
_THUMBNAIL_PX = 12


@dataclass(frozen=True, slots=True)
class Drawing:
    """An icon at one size, ready to be painted: `background * transparency + colour`."""

    colour: Float[np.ndarray, "height width 3"]
    """Premultiplied, 8-bit levels."""
    transparency: Float[np.ndarray, "height width 1"]
    mask: Bool[np.ndarray, "height width"]
    area: int
    """Pixels of the mask."""


class CutOut:
    """The visible part of an icon at any size; each size is made once."""

    def __init__(self, encoded: bytes) -> None:
        canvas: UInt8[np.ndarray, "size size 4"] = np.ascontiguousarray(decode(encoded, IMAGE_SIZE).transpose(1, 2, 0))
        image = Image.frombytes("RGBa", (IMAGE_SIZE, IMAGE_SIZE), canvas.tobytes())
        self._image = image.crop(Image.fromarray(canvas[..., 3] >= HALF_COVERED).getbbox())
        self._drawings: dict[int, Drawing] = {}

    def at(self, longer_side: int) -> Drawing:
        """The icon whose longer side has so many pixels."""
        if longer_side not in self._drawings:
            scale = longer_side / max(self._image.size)
            width, height = (max(1, round(side * scale)) for side in self._image.size)
            pixels = np.asarray(self._image.resize((width, height), Image.Resampling.BILINEAR))
            mask = pixels[..., 3] >= HALF_COVERED
            self._drawings[longer_side] = Drawing(
                colour=pixels[..., :3].astype(np.float64),
                transparency=1 - pixels[..., 3:] / 255,
                mask=mask,
                area=int(np.count_nonzero(mask)),
            )
        return self._drawings[longer_side]


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneClass:
    """One kind of object."""

    name: str
    domain: str
    cut_outs: dict[str, tuple[CutOut, ...]]
    """By split."""


def choose_classes(config: SceneConfig) -> tuple[SceneClass, ...]:
    """The classes of a set, sorted by domain and name.

    Raises:
        ConfigError: a domain has too few.
    """
    candidates = _candidates(config.min_drawings)
    margins = distinctness([cut_outs for _, _, cut_outs in candidates])
    # Short names first: the names of one word, then those of two.
    ranks = sorted(range(len(candidates)), key=lambda rank: (" " in candidates[rank][1], -margins[rank]))
    chosen: dict[str, list[SceneClass]] = {domain: [] for domain in CATEGORIES}
    used: set[str] = set()
    for domain, name, cut_outs in (candidates[rank] for rank in ranks):
        words = set(name.split())
        if len(chosen[domain]) < config.classes_per_category and not words & used:
            used |= words
            chosen[domain].append(SceneClass(name=name, domain=domain, cut_outs=by_split(cut_outs)))
    for domain, kinds in chosen.items():
        if len(kinds) < config.classes_per_category:
            rule = f"{domain} has {len(kinds)} classes of {config.min_drawings} drawings; lower it or min_drawings"
            raise ConfigError("classes_per_category", config.classes_per_category, rule)
    return tuple(sorted(itertools.chain(*chosen.values()), key=lambda kind: (kind.domain, kind.name)))


def _candidates(min_drawings: int) -> list[tuple[str, str, list[CutOut]]]:
    """Domain, name and cut-outs of each, in an order that does not depend on the file's.

    The cut-outs are in the order of a hash, so that no split is of one style.
    """
    icons = pq.read_table(BUNDLED_ICONS, columns=[schema.IMAGE, "domain", "caption", "label", "split", "style"])
    drawings: defaultdict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    columns = (icons[name].to_pylist() for name in ("domain", "caption", "label", "split", "style"))
    for row, (domain, name, label, split, style) in enumerate(zip(*columns, strict=True)):
        if domain in CATEGORIES and split == "train" and is_fit_name(name):
            drawings[domain, name].append((hashlib.sha1(f"{label} {style}".encode()).hexdigest(), row))
    return [
        (domain, name, [CutOut(icons[schema.IMAGE][row].as_py()) for _, row in sorted(found)])
        for (domain, name), found in sorted(drawings.items())
        if len(found) >= min_drawings
    ]


def is_fit_name(name: str) -> bool:
    """Whether a name is one or two words of small letters, and singular as far as its spelling tells."""
    words = name.split()
    return len(words) <= 2 and all(word.isalpha() and word.islower() for word in words) and not name.endswith("s")


def by_split(cut_outs: list[CutOut]) -> dict[str, tuple[CutOut, ...]]:
    """The first five for training, the next for validation, the rest for testing."""
    bounds = (0, _NUM_TRAIN_DRAWINGS, _NUM_TRAIN_DRAWINGS + _NUM_VAL_DRAWINGS, len(cut_outs))
    parts = itertools.pairwise(bounds)
    return {split: tuple(cut_outs[start:end]) for split, (start, end) in zip(schema.SPLITS, parts, strict=True)}


def distinctness(cut_outs: Sequence[Sequence[CutOut]]) -> Float[np.ndarray, " classes"]:
    """How much more alike the drawings of one class are than those of different ones.

    For each drawing the cosine similarity to the nearest other of its class minus that to the nearest of any other
    class, between 12 x 12 thumbnails less their common mean; a class has the mean of its drawings.
    """
    thumbnails = np.stack([_thumbnail(cut_out) for kind in cut_outs for cut_out in kind])
    thumbnails -= thumbnails.mean(0)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    class_of = np.repeat(np.arange(len(cut_outs)), [len(kind) for kind in cut_outs])
    similarity = thumbnails @ thumbnails.T
    np.fill_diagonal(similarity, -np.inf)
    same = class_of[:, None] == class_of[None, :]
    margin = np.where(same, similarity, -np.inf).max(1) - np.where(same, -np.inf, similarity).max(1)
    return np.bincount(class_of, margin) / np.bincount(class_of)


def _thumbnail(cut_out: CutOut) -> np.ndarray:
    drawing = cut_out.at(_THUMBNAIL_PX)
    square = np.zeros((_THUMBNAIL_PX, _THUMBNAIL_PX, 4))
    height, width = drawing.mask.shape
    top, left = (_THUMBNAIL_PX - height) // 2, (_THUMBNAIL_PX - width) // 2
    square[top : top + height, left : left + width, :3] = drawing.colour
    square[top : top + height, left : left + width, 3:] = 255 * (1 - drawing.transparency)
    return square.ravel()
