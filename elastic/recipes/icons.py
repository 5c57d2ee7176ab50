"""Runs on the bundled icons: real drawings in twelve domains, instance classes drawn in several styles."""

from dataclasses import replace

from elastic.data.augment import AugmentConfig
from elastic.data.config import ClassBalanced, DataConfig, StreamConfig
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.objectives.classification import Classification
from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.supcon import MultiPositive
from elastic.train.config import TrainConfig
from elastic.train.optim import OptimConfig
from elastic.train.submodels import SubmodelSampling

EMBED_DIMS = (16, 32, 64, 128)
IMAGE_SIZE = 32


def icons() -> TrainConfig:
    """The bundled model: `elastic train icons`, at most an hour on 2 cores.

    A small ViT that sees 16 patches, with classes, captions and class prototypes as three views of what belongs
    together. Most images have few siblings, so the budget goes into many short steps, one granularity each.
    """
    return TrainConfig(
        name="icons",
        model=EncoderConfig(
            vision=VisionConfig(image_size=IMAGE_SIZE, patch_size=8, width=160, depth=5, num_heads=5, num_cls_tokens=0),
            text=TextConfig(vocab_size=4096, max_tokens=24, width=128, depth=2, num_heads=4),
            embed_dims=EMBED_DIMS,
        ),
        data=DataConfig(
            streams=(StreamConfig(sampling=ClassBalanced(classes_per_batch=128, images_per_class=2)),),
            image_size=IMAGE_SIZE,
            augment=AugmentConfig(),
        ),
        objectives={
            "supcon": Matryoshka(inner=MultiPositive(temperature=0.1), embed_dims=EMBED_DIMS),
            "classes": Matryoshka(inner=Classification(), embed_dims=EMBED_DIMS),
            "captions": Matryoshka(inner=ImageText(), embed_dims=EMBED_DIMS),
        },
        submodels=SubmodelSampling(policy="sample", probabilities=(0.2, 0.2, 0.22, 0.38)),
        optim=OptimConfig(learning_rate=1e-3, weight_decay=0.05, betas=(0.9, 0.98), ema_decay=0.998),
        steps=8000,
    )


def icons_demo() -> TrainConfig:
    """The same run cut short: `elastic train icons_demo`, at most five minutes on 2 cores."""
    full = icons()
    return replace(full, name="icons_demo", steps=600, optim=replace(full.optim, ema_decay=0.99))
