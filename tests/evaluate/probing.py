"""A tiny source that every probe can be run on: one coloured half of each image, near where all else is far."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.drawing import encode

SIZE = 16
COLOURS = {"red": (210, 30, 30), "green": (30, 190, 60), "blue": (40, 60, 220)}
PLACES = ("left", "right")
IMAGES = {"train": 24, "val": 6, "test": 12}


def record(number: int, split: str, **changes: Any) -> dict[str, Any]:
    """One row; colours and places take turns, and the background changes with the number."""
    colour, place = list(COLOURS)[number % 3], PLACES[number // 3 % 2]
    inside = np.zeros((SIZE, SIZE), bool)
    inside[:, : SIZE // 2] = place == "left"
    inside[:, SIZE // 2 :] = place == "right"
    background = 90 + 2 * number
    row = {
        "image": encode(np.where(inside[..., None], COLOURS[colour], background).astype(np.uint8)),
        "domain": "halves",
        "label": colour,
        "caption": f"a {colour}",
        "synthetic_captions": [f"{colour} on the {place}", colour],
        "source": "real",
        "split": split,
        "segments": encode(inside.astype(np.uint8)),
        "depth_mm": encode(np.where(inside, 1000, 3000).astype(np.uint16)),
    }
    return row | changes


def records(**changes: Any) -> list[dict[str, Any]]:
    """The whole set; `changes` are made to every row."""
    return [record(number, split, **changes) for split, count in IMAGES.items() for number in range(count)]


def write(path: Path, rows: list[dict[str, Any]], without: tuple[str, ...] = ()) -> str:
    """Store rows as a Parquet source, without some columns, and return its location."""
    kept = [{name: value for name, value in row.items() if name not in without} for row in rows]
    names = {"segment_names": json.dumps(["background", "half"])}
    pq.write_table(pa.Table.from_pylist(kept).replace_schema_metadata(names), path, row_group_size=8)
    return str(path)
