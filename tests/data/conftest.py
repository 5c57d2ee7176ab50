"""Data sets on disk and the configurations that read them."""

from pathlib import Path

import pytest

from elastic.data.config import ClassBalanced, DataConfig, Shuffled, StreamConfig
from elastic.data.feed import FeedConfig
from elastic.data.tokenizer import train_tokenizer
from elastic.model.config import Preprocess

from .drawing import BROKEN, plain, table, write


@pytest.fixture
def shapes(tmp_path: Path) -> str:
    """Twelve classes of three readable images."""
    return write(tmp_path, table(12, 3))


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """Twelve classes of three images; two images of the first class and all of the second are broken."""
    images = [BROKEN if index in (0, 2, 3, 4, 5) else plain(index) for index in range(36)]
    return write(tmp_path, table(12, 3, image=images), "damaged.parquet")


def stream(source: str, **changes: object) -> StreamConfig:
    """A class-balanced stream of four classes with two images each."""
    sampling = ClassBalanced(classes_per_batch=4, images_per_class=2)
    return StreamConfig(**{"name": "shapes", "source": source, "sampling": sampling} | changes)


def two_streams(source: str, **changes: object) -> DataConfig:
    """A class-balanced stream and a shuffled one, small enough for single steps to be looked at."""
    shuffled = StreamConfig(name="shuffled", source=source, sampling=Shuffled(batch_size=6), views_per_image=2)
    default = {"image_size": 8, "canvas_size": 16, "segment_steps": 5, "max_bad_fraction": 1.0}
    return DataConfig(streams=(stream(source), shuffled), **default | changes)


def feed_config(data: DataConfig, **changes: object) -> FeedConfig:
    """Everything a feed needs, with a small tokenizer."""
    tokenizer = train_tokenizer([f"thing number {index}" for index in range(12)], 64)
    default = {"seed": 11, "preprocess": Preprocess(image_size=data.image_size), "tokenizer": tokenizer}
    return FeedConfig(data=data, **default | changes)
