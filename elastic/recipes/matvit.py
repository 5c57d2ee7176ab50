"""MatViT and MRL alone, as classifiers of icons: one dimension of elasticity each."""

from dataclasses import replace

from elastic.objectives.classification import Classification
from elastic.objectives.matryoshka import Matryoshka
from elastic.recipes.icons import icons
from elastic.train.config import TrainConfig
from elastic.train.submodels import SubmodelSampling


def matvit() -> TrainConfig:
    """MatFormer's nested ViT (arXiv 2310.07707): `elastic train matvit`, about 25 minutes on 2 cores.

    One embedding width, four FFN sizes.
    Classification of the icons' training classes; one size a step, all equally often.
    """
    full = icons()
    return replace(
        full,
        name="matvit",
        model=replace(full.model, text=None, embed_dims=full.model.embed_dims[-1:]),
        objectives={"classes": Classification()},
        submodels=SubmodelSampling(policy="sample"),
        steps=2000,
    )


def mrl() -> TrainConfig:
    """Matryoshka representation learning (arXiv 2205.13147): `elastic train mrl`, half an hour on 2 cores.

    One FFN size, four widths.
    Classification of the icons' training classes at every width, with one set of prototypes for all (MRL-E).
    """
    full = icons()
    return replace(
        full,
        name="mrl",
        model=replace(full.model, text=None, ffn_fractions=(1.0,)),
        objectives={"classes": Matryoshka(inner=Classification(), embed_dims=full.model.embed_dims)},
        submodels=SubmodelSampling(),
        steps=2000,
    )
