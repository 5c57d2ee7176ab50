"""The smallest run that goes through everything."""

from dataclasses import replace

from elastic.data.config import ClassBalanced, StreamConfig
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.supcon import MultiPositive
from elastic.recipes.icons import icons
from elastic.train.config import TrainConfig

EMBED_DIMS = (8, 16)


def debug() -> TrainConfig:
    """Every part of a run in seconds, plus the start of Ray: `elastic train debug`. It learns next to nothing."""
    full = icons()
    return replace(
        full,
        name="debug",
        model=EncoderConfig(
            vision=VisionConfig(image_size=16, patch_size=8, width=32, depth=2, num_heads=2, num_cls_tokens=0),
            text=TextConfig(vocab_size=512, max_tokens=8, width=16, depth=1, num_heads=2),
            embed_dims=EMBED_DIMS,
        ),
        data=replace(
            full.data,
            streams=(StreamConfig(sampling=ClassBalanced(classes_per_batch=8, images_per_class=2)),),
            image_size=16,
            canvas_size=16,
        ),
        objectives={
            "supcon": Matryoshka(inner=MultiPositive(), embed_dims=EMBED_DIMS),
            "captions": Matryoshka(inner=ImageText(), embed_dims=EMBED_DIMS),
        },
        steps=20,
        checkpoint_every=10,
        log_every=5,
    )
