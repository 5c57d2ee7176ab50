"""Masked images beside classification (arXiv 2312.00950, whose details are not public), on the bundled icons."""

from dataclasses import replace

from elastic.objectives.classification import Classification
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.mim import MaskedImages
from elastic.recipes.icons import icons
from elastic.train.config import TrainConfig
from elastic.train.masking import MaskConfig


def mim() -> TrainConfig:
    """Classification of icons while hidden patches are told: `elastic train mim`, about an hour on 2 cores.

    A step costs two passes.
    Compare it with the same run at `--objectives.masked.weight 0`, and with that run at twice the steps, which cost
    as much. Small models trained for few steps are not expected to gain: the second task takes some of their capacity.
    Sixteen patches leave little context; the patch tokens, not the embedding, are where a difference shows first.
    """
    full = icons()
    return replace(
        full,
        name="mim",
        model=replace(full.model, text=None),
        objectives={
            "classes": Matryoshka(inner=Classification(), embed_dims=full.model.embed_dims),
            "masked": MaskedImages(),
        },
        masking=MaskConfig(ratio=0.5),
        steps=2000,
    )
