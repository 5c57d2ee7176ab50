"""A tiny data set on disk, a tiny encoder, and one evaluation of it."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from elastic.data.tokenizer import train_tokenizer
from elastic.evaluate.probe import probe
from elastic.evaluate.probe_tasks import ProbesConfig
from elastic.evaluate.run import EvaluateConfig, evaluate
from elastic.model.config import EncoderConfig, Preprocess, TextConfig, VisionConfig
from elastic.model.encoder import Encoder

from .probing import records, write

PREPROCESS = Preprocess(image_size=8)
COLOURS = {
    ("fruit", "apple"): (200, 30, 30),
    ("fruit", "lime"): (60, 200, 40),
    ("fruit", "plum"): (90, 20, 110),
    ("sign", "stop"): (240, 10, 60),
    ("sign", "info"): (20, 60, 220),
}
IMAGES_PER_CLASS = 3


def png(colour: tuple[int, int, int], brightness: float) -> bytes:
    """A square of one colour, left half darker."""
    pixels = np.tile(np.array(colour) * brightness, (16, 16, 1))
    pixels[:, :8] *= 0.8
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def rows() -> list[dict]:
    """Every class in three brightnesses in the test split; one unlabelled row; one train row."""
    found = [
        {"image": png(colour, 1 - 0.05 * i), "domain": domain, "label": label, "caption": f"a {label}", "split": "test"}
        for (domain, label), colour in COLOURS.items()
        for i in range(IMAGES_PER_CLASS)
    ]
    extra = {"image": png((0, 0, 0), 1.0), "domain": "fruit", "caption": None}
    return [*found, extra | {"label": None, "split": "test"}, extra | {"label": "fig", "split": "train"}]


def write_set(path: Path, records: list[dict]) -> str:
    """Store rows as a Parquet source and return its location."""
    pq.write_table(pa.Table.from_pylist([{"source": "real"} | record for record in records]), path)
    return str(path)


@pytest.fixture
def colours(tmp_path):
    return write_set(tmp_path / "colours.parquet", rows())


@pytest.fixture(scope="session")
def encoder():
    torch.manual_seed(0)
    vision = VisionConfig(image_size=8, patch_size=4, width=16, depth=2, num_heads=2, mlp_ratio=2.0)
    text = TextConfig(vocab_size=64, max_tokens=6, width=8, depth=1, num_heads=2, mlp_ratio=4.0)
    return Encoder(EncoderConfig(vision=vision, text=text, ffn_fractions=(0.25, 0.5, 1.0), embed_dims=(4, 8))).eval()


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer([f"a {label}" for _, label in COLOURS], 64)


@pytest.fixture(scope="session")
def evaluation(encoder, tokenizer, tmp_path_factory):
    location = write_set(tmp_path_factory.mktemp("data") / "colours.parquet", rows())
    return evaluate(encoder, PREPROCESS, tokenizer, EvaluateConfig(source=location), name="tiny")


@pytest.fixture(scope="session")
def halves(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "halves.parquet", records())


@pytest.fixture(scope="session")
def probes(encoder, tokenizer, halves):
    return probe(encoder, PREPROCESS, tokenizer, ProbesConfig(source=halves, dense_steps=30), name="tiny")
