"""SynCLR on composed scenes: images made from one caption are one class (arXiv 2312.17742)."""

from dataclasses import replace

from elastic.data.augment import AugmentConfig
from elastic.data.config import ClassBalanced, DataConfig, LocalCrops, StreamConfig
from elastic.model.config import EncoderConfig, VisionConfig
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.prototypes import Prototypes
from elastic.objectives.supcon import MultiPositive
from elastic.objectives.synclr import SynClr
from elastic.objectives.tips import MaskedPatches
from elastic.train.config import TrainConfig
from elastic.train.masking import MaskConfig
from elastic.train.optim import OptimConfig

EMBED_DIMS = (16, 32, 64, 128)
IMAGE_SIZE = 48

# Captions tell left from right: no flips. They do not tell colours, so colours may change.
_VIEWS = AugmentConfig(
    scale=(0.6, 1.0), rotation_deg=0.0, shift=0.1, shear=0.0, flip_probability=0.0, background_probability=0.0
)
_CROPS = LocalCrops(count=4, image_size=16, augment=replace(_VIEWS, scale=(0.3, 0.55), shift=0.5))


def synclr() -> TrainConfig:
    """SynCLR without text: `elastic train synclr`, about 40 minutes on 2 cores.

    Needs the set `scenes`, built at the first use.

    Three objectives of weight 1: contrast of class tokens by caption, with small crops as further anchors; hidden
    patches with Sinkhorn's balance (iBOT), all images masked in a pass of their own where the paper masks half of
    them in the only one; and, because SynCLR's heads are thrown away, the same grouping as StableRep contrasts it, at
    every width of the embedding that is delivered. A batch is 32 captions with their four images.

    The contrast cannot fall below `synclr/floor@nats`, ln 3, for whole images, and ln 4 for crops. There are fewer
    prototypes than a quarter of a batch's hidden patches, or Sinkhorn could not balance them.
    """
    prototypes = Prototypes(count=512, hidden=256, bottleneck=64, balance="sinkhorn")
    return TrainConfig(
        name="synclr",
        model=EncoderConfig(
            vision=VisionConfig(
                timm_name="vit_tiny_r_s16_p8_224",  # a convolutional stem: it learns from few images
                image_size=IMAGE_SIZE,
                patch_size=2,  # of the stem's 12 x 12 cells, so 36 patches of 8 pixels
                width=128,
                depth=4,
                num_heads=4,
                pool="token",
            ),
            embed_dims=EMBED_DIMS,
        ),
        data=DataConfig(
            streams=(
                StreamConfig(
                    name="synthetic",
                    source="scenes",
                    domains=("scenes-synthetic",),
                    sampling=ClassBalanced(classes_per_batch=32, images_per_class=4, by="caption_id"),
                    local_crops=_CROPS,
                ),
            ),
            image_size=IMAGE_SIZE,
            augment=_VIEWS,
        ),
        objectives={
            "synclr": SynClr(locals=True),
            "masked": MaskedPatches(prototypes=prototypes),
            "nested": Matryoshka(inner=MultiPositive(by="caption_ids"), embed_dims=EMBED_DIMS),
        },
        masking=MaskConfig(ratio=0.5),
        optim=OptimConfig(learning_rate=1e-3, weight_decay=0.05, ema_decay=0.99),
        steps=1500,
        checkpoint_every=100,
    )
