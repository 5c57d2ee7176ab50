"""Everything at once: TIPS, SynCLR, UDON and supervised MIM on the nested encoder, on real and synthetic images."""

from dataclasses import replace

from elastic.data.config import ClassBalanced, DataConfig, Shuffled, StreamConfig
from elastic.model.pretrained import BUNDLED
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.mim import MaskedImages
from elastic.objectives.synclr import SynClr
from elastic.objectives.udon import Udon
from elastic.recipes.icons import ICON_VIEWS, icons
from elastic.recipes.tips import EMBED_DIMS, IMAGE_SIZE, scene_stream, tips
from elastic.recipes.udon import DOMAINS
from elastic.train.balance import Balancing
from elastic.train.config import TrainConfig

LABELLED_SHARE = 0.5
"""Steps on labelled icons; the others are on scenes, real and synthetic 3 to 1."""


def joint() -> TrainConfig:
    """All objectives together: `elastic train joint`, an hour and a half on 2 cores.

    A step takes one stream and trains what it can feed. Scenes: both captions, crops and hidden patches (TIPS).
    Synthetic scenes, four images of one caption: the same without written captions, and their grouping (SynCLR, on
    the second class token, because captions describe scenes). Icons, one domain a step: teachers and student (UDON).
    Hidden patches are told on all of them, by prototypes (TIPS) and by codes (supervised MIM), from one masked pass.
    SynCLR rises to its weight over the first tenth of the run.
    How often each domain of icons comes follows its teacher's loss.

    The image tower starts from the bundled model's, which knows icons; its class tokens, the words and all heads are
    new. UDON starts from a trained tower too, and the sets are too small to teach everything from nothing.
    """
    base = tips()
    bundled = icons().model.vision
    tower = replace(
        base.model.vision,
        width=bundled.width,
        depth=bundled.depth,
        num_heads=bundled.num_heads,
        checkpoint=BUNDLED,
    )
    scenes = replace(scene_stream(), shows_labels=False, weight=0.75 * (1 - LABELLED_SHARE))
    synthetic = replace(
        scenes,
        name="synthetic",
        domains=("scenes-synthetic",),
        sampling=ClassBalanced(classes_per_batch=16, images_per_class=4, by="caption_id"),
        weight=0.25 * (1 - LABELLED_SHARE),
    )
    labelled = tuple(
        StreamConfig(
            name=domain,
            domains=(domain,),
            sampling=Shuffled(batch_size=64),
            augment=ICON_VIEWS,
            weight=LABELLED_SHARE / len(DOMAINS),
        )
        for domain in DOMAINS
    )
    return replace(
        base,
        name="joint",
        model=replace(base.model, vision=tower),
        data=DataConfig(streams=(scenes, synthetic, *labelled), image_size=IMAGE_SIZE, segment_steps=200),
        objectives=base.objectives
        | {
            "groups": SynClr(token="second", locals=True, ramp=0.1),
            "udon": Matryoshka(inner=Udon(), embed_dims=EMBED_DIMS),
            "codes": MaskedImages(),
        },
        balancing=Balancing(),
        steps=4000,
    )
