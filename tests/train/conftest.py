"""A run small enough to step through by hand, and batches for it."""

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elastic.batch import Batch, Captions
from elastic.data.config import ClassBalanced, DataConfig, StreamConfig
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.objectives.base import Dimensions
from elastic.objectives.classification import Classification
from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.supcon import MultiPositive
from elastic.train.config import TrainConfig

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other

NUM_CLASSES = 4
DIMENSIONS = Dimensions(embed_dim=8, width=16, num_classes=NUM_CLASSES, class_domains=(0,) * NUM_CLASSES)


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(
        name="tiny",
        model=EncoderConfig(
            vision=VisionConfig(
                image_size=16, patch_size=8, width=16, depth=2, num_heads=2, num_cls_tokens=0, drop_path=0.2
            ),
            text=TextConfig(vocab_size=32, max_tokens=6, width=8, depth=1, num_heads=2),
            embed_dims=(4, 8),
        ),
        data=DataConfig(
            streams=(StreamConfig(sampling=ClassBalanced(classes_per_batch=4, images_per_class=2)),),
            image_size=16,
            canvas_size=16,
        ),
        objectives={
            "supcon": Matryoshka(inner=MultiPositive(), embed_dims=(4, 8)),
            "classes": Matryoshka(inner=Classification(), embed_dims=(4, 8), weight=0.5),
            "captions": Matryoshka(inner=ImageText(), embed_dims=(4, 8)),
        },
        steps=6,
        checkpoint_every=2,
        log_every=1,
        num_threads=1,
    )


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    def make(seed: int = 0, *, captions: bool = True) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(NUM_CLASSES).repeat_interleave(2)
        text = Captions(
            tokens=torch.randint(1, 32, (NUM_CLASSES, 6), generator=generator),
            mask=torch.ones(NUM_CLASSES, 6, dtype=torch.bool),
            index=labels.clone(),
        )
        return Batch(
            images=torch.randn(2 * NUM_CLASSES, 3, 16, 16, generator=generator),
            row_ids=torch.arange(2 * NUM_CLASSES),
            domains=torch.zeros(2 * NUM_CLASSES, dtype=torch.int64),
            labels=labels,
            captions=text if captions else None,
        )

    return make


@pytest.fixture
def dimensions() -> Dimensions:
    return DIMENSIONS


@pytest.fixture(scope="session")
def drawings(tmp_path_factory) -> Path:
    """An image folder of eight classes, three noisy drawings of each, with captions."""
    folder = tmp_path_factory.mktemp("drawings")
    random = np.random.default_rng(0)
    rows = []
    for label in range(8):
        blocks = random.integers(20, 235, (4, 4, 3))
        for index in range(3):
            noisy = (blocks + random.integers(-20, 20, blocks.shape)).astype(np.uint8)
            Image.fromarray(noisy).resize((16, 16), Image.Resampling.NEAREST).save(folder / f"{label}_{index}.png")
            rows.append((f"{label}_{index}.png", f"thing {label}", f"drawing of thing {label}"))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label", "caption"), *rows])
    return folder


@pytest.fixture
def drawings_config(config, drawings) -> TrainConfig:
    """The tiny run on the drawings."""
    stream = replace(config.data.streams[0], source=str(drawings))
    return replace(config, data=replace(config.data, streams=(stream,)))
