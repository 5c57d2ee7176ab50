"""The runs on icons that experiments vary: the recipe `icons`, shorter, and how they are measured."""

from dataclasses import replace

import numpy as np

from elastic.data.config import ClassBalanced, StreamConfig
from elastic.evaluate.dataset import load_retrieval_set
from elastic.evaluate.embed import embed_images
from elastic.evaluate.uned import image_retrieval
from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.supcon import MultiPositive
from elastic.profile.tables import MEAN
from elastic.recipes.icons import icons
from elastic.submodel import Submodel
from elastic.train.config import TrainConfig
from elastic.train.submodels import SubmodelSampling
from experiments.harness import Trained

BATCH = ClassBalanced(classes_per_batch=64, images_per_class=2)


def short_icons(
    name: str,
    steps: int,
    *,
    ffn_fractions: tuple[float, ...] = (1 / 8, 1 / 4, 1 / 2, 1.0),
    embed_dims: tuple[int, ...] = (16, 32, 64, 128),
    mlp_ratio: float = 4.0,
    submodels: SubmodelSampling | None = None,
) -> TrainConfig:
    """The recipe with fewer steps, smaller batches, and other nesting; everything else is the recipe's."""
    full = icons()
    vision = replace(full.model.vision, mlp_ratio=mlp_ratio)
    return replace(
        full,
        name=name,
        model=replace(full.model, vision=vision, ffn_fractions=ffn_fractions, embed_dims=embed_dims),
        data=replace(full.data, streams=(StreamConfig(sampling=BATCH),)),
        objectives={
            "supcon": Matryoshka(inner=MultiPositive(temperature=0.1), embed_dims=embed_dims),
            "captions": Matryoshka(inner=ImageText(), embed_dims=embed_dims, weight=0.3),
        },
        submodels=submodels or SubmodelSampling(),
        optim=replace(full.optim, ema_decay=0.99),
        steps=steps,
        checkpoint_every=20 * (steps // 20),
    )


def recall(query: np.ndarray, index: np.ndarray) -> float:
    """R@1 of every image of the test split against all others, mean over domains."""
    return image_retrieval(query, index, load_retrieval_set("icons", "test"))[MEAN].recall_at_1


def embeddings(trained: Trained, submodels: tuple[Submodel, ...], split: str = "test") -> dict[Submodel, np.ndarray]:
    """Full-width embeddings of a split by submodel."""
    data = load_retrieval_set("icons", split)
    return embed_images(trained.encoder, data, trained.preprocess, submodels).by_submodel
