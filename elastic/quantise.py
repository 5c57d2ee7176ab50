"""Embeddings in fewer bytes: what each dtype holds, and the way back.

An embedding is cut to a width and L2-normalised first (`cut`), then written as one of these. `x` is a coordinate.

    float32   x
    float16   x, rounded to half precision
    int8      round(x / scale), symmetric: 0 stays 0, the range is -127 to 127; x is about scale * value
    uint8     the same + 128, range 1 to 255; x is about scale * (value - 128)
    ubinary   1 where x > 0, else 0; eight coordinates a byte, the first in the highest bit, zeros behind the last
    binary    the same bytes - 128, as signed int8, for stores that have no unsigned type

`scale` belongs to the vector: its largest absolute coordinate over 127. It needs no calibration data, clips nothing,
and does not depend on what else was embedded, so vectors of any two calls compare. A fixed scale would have to cover
[-1, 1] and would leave a 768-wide embedding, whose coordinates are about 0.04, some five steps. The price: a store
that compares by inner product or Euclidean distance needs `scale * value`. Cosine does not, because a factor per
vector cancels: search int8 values as they are, uint8 ones minus 128.

Binary and ubinary are compared by Hamming distance, which counts the signs that differ; the offset of 128 flips the
highest bit of both bytes, so the distance is the same for both. The expected cosine of two embeddings that differ in
h of d signs is about cos(pi * h / d).

Needs numpy alone, so that clients share it with the server.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from elastic.errors import InvalidRequest

Dtype = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]

DTYPES: tuple[Dtype, ...] = get_args(Dtype)

STEPS = 127
"""Of int8 on either side of zero; -128 is left out, so that a vector and its negative have the same magnitudes."""

OFFSET = np.uint8(128)
"""Between the signed and the unsigned form of a byte; taking it from one is the same as flipping its highest bit."""

WIRE: dict[Dtype, str] = {
    "float32": "<f4",
    "float16": "<f2",
    "int8": "|i1",
    "uint8": "|u1",
    "binary": "|i1",
    "ubinary": "|u1",
}
"""numpy's name of the elements on the wire: little-endian wherever it matters."""


@dataclass(frozen=True, slots=True)
class Output:
    """One form in which an embedding is returned."""

    embed_dim: int = 0
    """A trained width; 0 is the width that the objective decides."""
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        parse_dtype(self.dtype)
        if self.embed_dim < 0:
            raise InvalidRequest("outputs.embed_dim", f"{self.embed_dim} is negative")


def parse_dtype(text: str) -> Dtype:
    """The dtype of that name.

    Raises:
        InvalidRequest: there is none.
    """
    for dtype in DTYPES:
        if text == dtype:
            return dtype
    raise InvalidRequest("dtype", f"{text!r} is not one of {', '.join(DTYPES)}")


def cut(embedding: np.ndarray, embed_dim: int) -> np.ndarray:
    """The first `embed_dim` coordinates as float32, L2-normalised again."""
    head = np.asarray(embedding[:embed_dim], np.float32)
    # `np.linalg.norm` is a dot product, for which numpy gives the interpreter's lock away however short the vector is,
    # and a busy server's event loop then waits to get it back.
    return head / max(math.sqrt((head * head).sum()), 1e-12)


def quantise(values: np.ndarray, dtype: Dtype) -> tuple[np.ndarray, float]:
    """A float32 vector as `dtype`, and the scale that leads back (1 where there is none)."""
    match dtype:
        case "float32" | "float16":
            return values.astype(WIRE[dtype]), 1.0
        case "int8" | "uint8":
            scale = np.float32(np.abs(values).max(initial=0.0) / STEPS) or np.float32(1.0)
            steps = np.rint(values / scale).clip(-STEPS, STEPS)
            return (steps + OFFSET if dtype == "uint8" else steps).astype(WIRE[dtype]), float(scale)
        case "binary" | "ubinary":
            packed = np.packbits(values > 0)
            return packed if dtype == "ubinary" else (packed ^ OFFSET).view(np.int8), 1.0


def dequantise(values: np.ndarray, dtype: Dtype, embed_dim: int, scale: float = 1.0) -> np.ndarray:
    """The float32 vector that quantised values stand for; of bits, a unit vector of the signs."""
    match dtype:
        case "float32" | "float16":
            return values.astype(np.float32)
        case "int8" | "uint8":
            offset = OFFSET if dtype == "uint8" else 0
            return (values.astype(np.float32) - offset) * np.float32(scale)
        case "binary" | "ubinary":
            packed = values if dtype == "ubinary" else values.view(np.uint8) ^ OFFSET
            signs = np.unpackbits(packed, count=embed_dim).astype(np.float32) * 2 - 1
            return signs / np.sqrt(np.float32(embed_dim))


def hamming(first: np.ndarray, second: np.ndarray) -> int:
    """In how many signs two `binary` or two `ubinary` vectors differ."""
    return int(np.unpackbits(first.view(np.uint8) ^ second.view(np.uint8)).sum())


def from_bytes(data: bytes, dtype: Dtype) -> np.ndarray:
    """The values of a vector from the wire, in this machine's byte order and writable."""
    wire = np.dtype(WIRE[dtype])
    return np.frombuffer(data, wire).astype(wire.newbyteorder("="))
