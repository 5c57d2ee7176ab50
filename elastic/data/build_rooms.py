"""Builds the benchmark set `rooms`: rendered rooms of real furniture models, with metric depth.

A room is a floor, two walls and a ceiling with five pieces at their real size. A camera with fixed optics stands in it
at eye height. Each row holds the picture and, at the same size, the category, the instance and the depth of every
pixel. Splits share no model, though some models of different splits resemble each other. A room depends on the
seed, its split and its number only, not on who renders it.

The models are CC0 or CC-BY 3.0 and are not part of this package: `elastic data fetch furniture` downloads them. Each
row names the authors of what it shows in `attribution`.
"""

import io
import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.progress import track

from elastic.data import schema
from elastic.data.fetch import fetched
from elastic.data.filesystem import cache_dir
from elastic.data.furniture import CATEGORIES, Piece, read_catalog, split_pieces
from elastic.data.render import Picture, render
from elastic.data.rooms import furnish, place_camera, shell
from elastic.errors import ConfigError, DataError

SEGMENT_NAMES = ("background", *CATEGORIES)
"""What the values of `segments` mean; floor, walls and ceiling are background."""

VERSION = 1
"""Part of the cached file's name; grows when the rows change."""

ROWS_PER_GROUP = 64
"""About 0.5 MB."""


Job = tuple[list[Piece], tuple[int, ...], str, "RoomsConfig"]
"""Arguments of `make_room`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoomsConfig:
    """How many rooms of what kind."""

    num_train: int = 400
    num_val: int = 50
    num_test: int = 150
    image_size: int = 64
    """Width and height in pixels."""
    num_pieces: int = 5
    """In every room; not all of them need be in sight."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in self.num_rooms.items():
            if value < 0:
                raise ConfigError(f"num_{name}", value, "must not be negative")
        if sum(self.num_rooms.values()) == 0:
            raise ConfigError("num_train", self.num_train, "at least one split must have rooms")
        if self.image_size < 8:
            raise ConfigError("image_size", self.image_size, "must be at least 8 pixels")
        if not 1 <= self.num_pieces <= 8:
            raise ConfigError("num_pieces", self.num_pieces, "must lie between 1 and 8: more do not fit the floor")

    @property
    def num_rooms(self) -> dict[str, int]:
        """Rooms of each split."""
        return {"train": self.num_train, "val": self.num_val, "test": self.num_test}


def rooms_path() -> Path:
    """Where the default set lies once it was built."""
    return cache_dir() / f"rooms-{VERSION}.parquet"


def cached_rooms() -> Path:
    """The default set in the user's cache. It is not built here: it needs a download and many minutes.

    Raises:
        DataError: it was never built.
    """
    path = rooms_path()
    if not path.exists():
        advice = "run `elastic data fetch furniture`, then `elastic data build rooms`"
        raise DataError("rooms", f"was not built ({path} does not exist)", advice)
    return path


def build_rooms(out: Path, config: RoomsConfig, num_processes: int) -> pa.Table:
    """Render the whole set and write it to `out`; returns the rows.

    Raises:
        DataError: the models were not fetched, or are damaged.
        ConfigError: less than one process.
    """
    if num_processes < 1:
        raise ConfigError("num_processes", num_processes, "must be at least 1")
    parts = split_pieces(read_catalog(fetched("furniture")))
    jobs: list[Job] = [
        (parts[split], (config.seed, schema.SPLITS.index(split), number), split, config)
        for split, num_rooms in config.num_rooms.items()
        for number in range(num_rooms)
    ]
    rows = list(track(_render_all(jobs, num_processes), "rendering rooms", total=len(jobs)))
    table = to_table(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Renamed last: a build that was stopped leaves no half a file under the name.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        unfinished = Path(scratch) / out.name
        pq.write_table(table, unfinished, row_group_size=ROWS_PER_GROUP, compression="zstd")
        unfinished.replace(out)
    return table


def to_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """Rows in the schema of `schema`, with masks, depth and credits behind."""
    own = [pa.field(name, pa.binary(), nullable=False) for name in (schema.SEGMENTS, schema.INSTANCES, schema.DEPTH)]
    fields = [*schema.ROW, *own, pa.field("attribution", pa.string(), nullable=False)]
    metadata = {schema.SEGMENT_NAMES_KEY: json.dumps(SEGMENT_NAMES)}
    return pa.Table.from_pylist(list(rows), schema=pa.schema(fields, metadata=metadata))


def make_room(pieces: Sequence[Piece], seed: tuple[int, ...], split: str, config: RoomsConfig) -> dict[str, Any]:
    """One row: a room of some of the pieces."""
    rng = np.random.default_rng(seed)
    placed = furnish(pieces, config.num_pieces, rng)
    camera = place_camera(placed, config.image_size, rng)
    scene = [(shell(rng), 0), *((item.load(), number) for number, item in enumerate(placed, 1))]
    light = (rng.uniform(0.3, 0.9), 1.0, rng.uniform(0.3, 0.9))
    return to_row(render(scene, camera, light, rng), [item.piece for item in placed], split)


def to_row(picture: Picture, pieces: Sequence[Piece], split: str) -> dict[str, Any]:
    """The row of a picture in which instance `i` is the `i`-th piece, counted from 1; 65.5 m and more are unknown."""
    segment_of = np.array([0, *(1 + CATEGORIES.index(piece.category) for piece in pieces)])
    pixels = np.bincount(picture.instances.ravel(), minlength=len(pieces) + 1)[1:]
    depth_mm = np.floor(picture.depth * 1000 + 0.5)
    visible = [pieces[index] for index in np.argsort(-pixels, kind="stable") if pixels[index] > 0]
    return {
        "image": encode_png(picture.rgb),
        "caption": ", ".join(piece.name for piece in visible) or None,
        "domain": "rooms",
        "source": "real",
        "split": split,
        schema.SEGMENTS: encode_png(segment_of[picture.instances].astype(np.uint8)),
        schema.INSTANCES: encode_png(picture.instances.astype(np.uint8)),
        schema.DEPTH: encode_png(np.where(depth_mm < 2**16, depth_mm, 0).astype(np.uint16)),
        "attribution": "; ".join(piece.credit for piece in visible),
    }


def encode_png(pixels: np.ndarray) -> bytes:
    """Lossless: RGB, 8 bits or 16 bits, by the type of the pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _render_all(jobs: Sequence[Job], num_processes: int) -> Iterator[dict[str, Any]]:
    if num_processes == 1:
        yield from (make_room(*job) for job in jobs)
        return
    # Spawned, not forked: the caller may hold threads.
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make_room, *zip(*jobs, strict=True), chunksize=4)
