"""Small images and data sets that the tests of this folder write to disk."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

BROKEN = b"\x89PNG\r\n\x1a\n this is where the pixels would be"


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """An encoded image of `[height, width, channels]` pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def plain(value: int, size: int = 16) -> bytes:
    """A grey, opaque square."""
    return encode(np.full((size, size, 3), value, np.uint8))


def table(num_classes: int, images_per_class: int, **columns: list) -> pa.Table:
    """Rows in class order: image `i` is a plain square of grey value `i`."""
    count = num_classes * images_per_class
    default = {
        "image": [plain(index) for index in range(count)],
        "label": [f"c{index // images_per_class:03}" for index in range(count)],
        "domain": ["shapes"] * count,
        "caption": [f"thing number {index // images_per_class}" for index in range(count)],
        "caption_id": [f"c{index // images_per_class:03}" for index in range(count)],
        "split": ["train"] * count,
    }
    return pa.table({name: column for name, column in (default | columns).items() if column is not None})


def write(folder: Path, rows: pa.Table, name: str = "set.parquet", group: int = 4) -> str:
    """The rows as a Parquet file of small row groups; returns its location."""
    pq.write_table(rows, folder / name, row_group_size=group)
    return str(folder / name)
