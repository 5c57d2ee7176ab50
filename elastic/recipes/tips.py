"""TIPS on scenes: two captions, self-distillation of crops, prediction of hidden patches (arXiv 2410.16512)."""

from dataclasses import replace

from elastic.data.augment import AugmentConfig
from elastic.data.config import DataConfig, LocalCrops, Shuffled, StreamConfig
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.prototypes import Prototypes
from elastic.objectives.tips import DualImageText, MaskedPatches, SelfDistillation
from elastic.train.config import TrainConfig
from elastic.train.masking import MaskConfig
from elastic.train.optim import OptimConfig
from elastic.train.submodels import SubmodelSampling

EMBED_DIMS = (16, 32, 64, 128)
IMAGE_SIZE = 48
PROTOTYPES = Prototypes(count=512, hidden=256, bottleneck=64, balance="sinkhorn", teacher_temperature=(0.02, 0.02))
DISTILLED = 0.15
"""Weight of crops; hidden patches have twice as much, as in the paper."""

# Captions say what is left and right and describe the whole scene: no flips, and most of it stays in view.
SCENE_VIEWS = replace(AugmentConfig.identity(), scale=(0.8, 1.0), shift=0.1)
SCENE_CROPS = LocalCrops(
    count=4, image_size=16, augment=replace(AugmentConfig.identity(), scale=(0.25, 0.5), shift=0.5)
)


def scene_model() -> EncoderConfig:
    """A small ViT with two class tokens that sees 36 patches, and a text tower."""
    return EncoderConfig(
        vision=VisionConfig(
            timm_name="vit_tiny_r_s16_p8_224",  # a convolutional stem: it learns from few images
            image_size=IMAGE_SIZE,
            patch_size=2,  # of the stem's 12 x 12 cells, so 8 pixels
            width=128,
            depth=4,
            num_heads=4,
            pool="token",
            num_cls_tokens=2,
        ),
        text=TextConfig(vocab_size=1024, max_tokens=40, width=128, depth=2, num_heads=4),
        embed_dims=EMBED_DIMS,
    )


def scene_stream(batch_size: int = 64) -> StreamConfig:
    """Scenes with both captions and small crops."""
    return StreamConfig(
        name="scenes",
        source="scenes",
        domains=("scenes",),
        sampling=Shuffled(batch_size=batch_size),
        captions="both",
        augment=SCENE_VIEWS,
        local_crops=SCENE_CROPS,
    )


def tips() -> TrainConfig:
    """TIPS on scenes: `elastic train tips`, about 25 minutes on 2 cores.

    Heads, batch and length are for two cores, and two things differ from the paper. Targets are balanced by Sinkhorn:
    with a running centre all class tokens, which look alike in a young model, met in one prototype within ten steps.
    And crops and hidden patches weigh 0.15 of what they do there (1 and 2): at full weight they were learned and
    captions were not.
    """
    return TrainConfig(
        name="tips",
        model=scene_model(),
        data=DataConfig(streams=(scene_stream(),), image_size=IMAGE_SIZE),
        objectives={
            "captions": Matryoshka(inner=DualImageText(), embed_dims=EMBED_DIMS),
            "crops": SelfDistillation(prototypes=PROTOTYPES, weight=DISTILLED),
            "masked": MaskedPatches(prototypes=PROTOTYPES, weight=2 * DISTILLED),
        },
        masking=MaskConfig(ratio=0.75),
        submodels=SubmodelSampling(policy="sample", probabilities=(0.17, 0.20, 0.22, 0.41)),
        optim=OptimConfig(learning_rate=1e-3, weight_decay=0.05, ema_decay=0.99),
        steps=1500,
        checkpoint_every=100,
    )


def tips_v2() -> TrainConfig:
    """TIPS v2 on scenes: `elastic train tips_v2`, about 25 minutes on 2 cores.

    The student is its own teacher, so only heads are averaged; visible patches count too (arXiv 2604.12012). The
    second class token meets detailed and short captions alike.
    """
    first = tips()
    masked = MaskedPatches(prototypes=PROTOTYPES, weight=2 * DISTILLED, every_patch=True)
    return replace(first, name="tips_v2", teacher="student", objectives=first.objectives | {"masked": masked})
