"""Builds the data set `scenes`: lay out, composite, caption, write Parquet.

Each scene is a function of the seed, its part of the set and its number. Icons are decoded once.
"""

import hashlib
import io
import itertools
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8
from PIL import Image

from elastic.data import schema
from elastic.data.backgrounds import draw_background
from elastic.data.scene_captions import Thing, detailed_caption, drop, short_caption, web_caption
from elastic.data.scene_classes import CutOut, Drawing, SceneClass, choose_classes
from elastic.data.scenes import (
    DENSE,
    DOMAIN,
    GRID,
    SEGMENT_NAMES,
    SYNTHETIC_DOMAIN,
    SceneConfig,
    cached_path,
)
from elastic.data.schema import INSTANCES, SEGMENT_NAMES_KEY, SEGMENTS
from elastic.errors import ConfigError

ROWS_PER_GROUP = 512
"""A row group is what a reader fetches to get one row: about 2.5 MB here."""
MAX_ATTEMPTS = 1000
"""Layouts tried for one scene, of which about one in three is accepted, and captions tried for a new one."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One composed scene."""

    pixels: UInt8[np.ndarray, "size size 3"]
    segments: UInt8[np.ndarray, "size size"]
    instances: UInt8[np.ndarray, "size size"]


def cached_scenes() -> Path:
    """The default set in the user's cache, built if it is not there yet.

    Builders at the same time do the work twice, but each renames a whole file into place.
    """
    path = cached_path()
    if not path.exists():
        _log.warning("building the data set `scenes` once, under a minute: %s", path)
        write_scenes(path, SceneConfig())
    return path


def write_scenes(out: Path, config: SceneConfig, on_image: Callable[[], object] = lambda: None) -> pa.Table:
    """Build a set and write it to `out`, whole or not at all; returns the rows.

    Raises:
        ConfigError: too few classes or captions, or objects do not fit beside each other.
    """
    table = build_scenes(config, on_image)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        unfinished = Path(scratch) / out.name
        pq.write_table(table, unfinished, row_group_size=ROWS_PER_GROUP, compression="zstd")
        os.replace(unfinished, out)
    return table


def build_scenes(config: SceneConfig, on_image: Callable[[], object] = lambda: None) -> pa.Table:
    """All rows: the real scenes by split, then the synthetic ones by caption; calls `on_image` after each."""
    classes = choose_classes(config)
    splits = zip(schema.SPLITS, (config.num_train, config.num_val, config.num_test), strict=True)
    rows = itertools.chain(
        *(_real_rows(config, classes, split, count) for split, count in splits), _synthetic_rows(config, classes)
    )
    kept = []
    for row in rows:
        kept.append(row)
        on_image()
    metadata = {SEGMENT_NAMES_KEY: json.dumps(SEGMENT_NAMES)}
    return pa.Table.from_pylist(kept, schema=pa.schema([*schema.ROW, *DENSE], metadata))


def _real_rows(
    config: SceneConfig, classes: Sequence[SceneClass], split: str, count: int
) -> Iterator[dict[str, object]]:
    for index in range(count):
        rng = np.random.default_rng([config.seed, schema.SPLITS.index(split), index])
        things = draw_things(rng, config, classes, salient=index % len(classes))
        noticed = [drop(rng, things, config.object_dropped) for _ in range(2)]
        yield {
            "caption": web_caption(rng, things, config.salient_named),
            "synthetic_captions": [detailed_caption(noticed[0]), short_caption(noticed[1])],
            "domain": DOMAIN,
            "label": things[0].name,
            "source": "real",
            "split": split,
        } | _drawn(things, compose(rng, config, classes, things, split))


def _synthetic_rows(config: SceneConfig, classes: Sequence[SceneClass]) -> Iterator[dict[str, object]]:
    captions: set[str] = set()
    for index in range(config.num_captions):
        rng = np.random.default_rng([config.seed, len(schema.SPLITS), index])
        things = _draw_unseen(rng, config, classes, index % len(classes), captions)
        caption = detailed_caption(things)
        captions.add(caption)
        for _ in range(config.images_per_caption):
            yield (
                {
                    "caption": None,  # nobody wrote one
                    "synthetic_captions": [caption, short_caption(things)],
                    "domain": SYNTHETIC_DOMAIN,
                    "caption_id": hashlib.sha1(caption.encode()).hexdigest()[:16],
                    "source": "synthetic",
                    "split": "train",
                }
                | _drawn(things, compose(rng, config, classes, things, "train"))
            )


def _draw_unseen(
    rng: np.random.Generator, config: SceneConfig, classes: Sequence[SceneClass], salient: int, captions: set[str]
) -> list[Thing]:
    # Two groups of one caption would be each other's negatives.
    for _ in range(MAX_ATTEMPTS):
        things = draw_things(rng, config, classes, salient)
        if detailed_caption(things) not in captions:
            return things
    rule = f"only {len(captions)} different captions were found; lower it or raise num_objects"
    raise ConfigError("num_captions", config.num_captions, rule)


def _drawn(things: Sequence[Thing], picture: Picture) -> dict[str, object]:
    return {
        "image": encode_image(picture.pixels),
        SEGMENTS: encode_labels(picture.segments),
        INSTANCES: encode_labels(picture.instances),
        "objects": [asdict(thing) for thing in things],
    }


def draw_things(
    rng: np.random.Generator, config: SceneConfig, classes: Sequence[SceneClass], salient: int
) -> list[Thing]:
    """What a scene shows and where in words: different classes in different cells, the salient one first."""
    fewest, most = config.num_objects
    count = int(rng.integers(fewest, most + 1))
    others = rng.choice(np.delete(np.arange(len(classes)), salient), count - 1, replace=False)
    cells = rng.choice(GRID**2, count, replace=False).tolist()
    return [
        Thing(name=classes[kind].name, domain=classes[kind].domain, row=cell // GRID, column=cell % GRID)
        for kind, cell in zip((salient, *others.tolist()), cells, strict=True)
    ]


def compose(
    rng: np.random.Generator, config: SceneConfig, classes: Sequence[SceneClass], things: Sequence[Thing], split: str
) -> Picture:
    """A picture of these things in drawings of a split, laid out anew until everything can be seen.

    Raises:
        ConfigError: no layout was found.
    """
    by_name = {kind.name: kind for kind in classes}
    choices = [by_name[thing.name].cut_outs[split] for thing in things]
    needed = np.array([config.min_salient_visible] + [config.min_visible] * (len(things) - 1))
    for _ in range(MAX_ATTEMPTS):
        layers = _lay_out(rng, config, things, [cut_outs[rng.integers(len(cut_outs))] for cut_outs in choices])
        order = rng.permutation(len(things))
        instances = np.zeros((config.image_size, config.image_size), np.uint8)
        for index in order:
            instances[layers[index].place][layers[index].drawing.mask] = index + 1
        visible = np.bincount(instances.ravel(), minlength=len(things) + 1)[1:]
        if (visible < needed * [layer.drawing.area for layer in layers]).any():
            continue
        background = draw_background(rng, config.image_size)
        pixels = _paint(background, [layers[index] for index in order])
        difference = np.abs(pixels - background).mean(2).ravel()
        if (np.bincount(instances.ravel(), difference)[1:] >= config.min_contrast * visible).all():
            values = np.array([0] + [SEGMENT_NAMES.index(thing.domain) for thing in things], np.uint8)
            return Picture(pixels=pixels.round().astype(np.uint8), segments=values[instances], instances=instances)
    rule = f"no layout of {len(things)} objects in {MAX_ATTEMPTS} shows them all; lower it, min_contrast or the sizes"
    raise ConfigError("min_visible", config.min_visible, rule)


@dataclass(frozen=True, slots=True)
class _Layer:
    drawing: Drawing
    place: tuple[slice, slice]


def _lay_out(
    rng: np.random.Generator, config: SceneConfig, things: Sequence[Thing], cut_outs: Sequence[CutOut]
) -> list[_Layer]:
    """Each thing in a size of its own, the middle of its box within its cell."""
    layers = []
    for index, (thing, cut_out) in enumerate(zip(things, cut_outs, strict=True)):
        smallest, largest = config.salient_px if index == 0 else config.other_px
        drawing = cut_out.at(int(rng.integers(smallest, largest + 1)))
        height, width = drawing.mask.shape
        top = draw_start(rng, thing.row, height, config.image_size)
        left = draw_start(rng, thing.column, width, config.image_size)
        layers.append(_Layer(drawing, (slice(top, top + height), slice(left, left + width))))
    return layers


def _paint(background: np.ndarray, layers: Sequence[_Layer]) -> np.ndarray:
    pixels = background.copy()
    for layer in layers:
        pixels[layer.place] *= layer.drawing.transparency
        pixels[layer.place] += layer.drawing.colour
    return pixels


def draw_start(rng: np.random.Generator, cell: int, side: int, image_size: int) -> int:
    """Where an object of a length begins, so that its middle lies in a cell of the grid and nothing is cut off."""
    first = max(0, int(np.ceil(cell * image_size / GRID - side / 2)))
    end = min(image_size - side + 1, int(np.ceil((cell + 1) * image_size / GRID - side / 2)))
    return int(rng.integers(first, end))


def encode_image(pixels: UInt8[np.ndarray, "height width 3"]) -> bytes:
    """Lossless WebP, of the effort that takes least time: a fifth smaller than a PNG and as quick to write and read."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, method=0, quality=0)
    return buffer.getvalue()


def encode_labels(labels: UInt8[np.ndarray, "height width"]) -> bytes:
    """8-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
