"""What does each part of TIPS add? Captions, self-distillation, hidden patches.

    python -m experiments.tips.run --seeds 3

All arms take equally many steps of equal batches of scenes; a later arm has all of the one before it, and costs more.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from elastic.objectives.base import ObjectiveConfig
from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.recipes.tips import EMBED_DIMS, tips, tips_v2
from elastic.train.config import TrainConfig
from elastic.train.submodels import SubmodelSampling
from experiments.harness import Arm, Estimate, Metrics, Runs, curves, markdown, present, train
from experiments.scenes import measure

STEPS = 300
FOLDER = Path(__file__).parent


def arm(seed: int, folder: Path, *, recipe: TrainConfig, parts: tuple[str, ...]) -> Metrics:
    """A recipe with some of its objectives."""
    objectives = {name: recipe.objectives[name] for name in parts}
    return measure(train(_short(recipe, objectives), seed, folder))


def web(seed: int, folder: Path) -> Metrics:
    """Written captions and the first class token only; the second one is never trained."""
    written = {"captions": Matryoshka(inner=ImageText(min_temperature=1e-3), embed_dims=EMBED_DIMS)}
    return measure(train(_short(tips(), written), seed, folder))


ARMS: dict[str, Arm] = {
    "web": web,
    "dual": partial(arm, recipe=tips(), parts=("captions",)),
    "crops": partial(arm, recipe=tips(), parts=("captions", "crops")),
    "tips": partial(arm, recipe=tips(), parts=("captions", "crops", "masked")),
    "v2": partial(arm, recipe=tips_v2(), parts=("captions", "crops", "masked")),
}
LABELS = {
    "web": "web captions",
    "dual": "+ synthetic captions, dual CLS",
    "crops": "+ self-distillation",
    "tips": "+ hidden patches (TIPS)",
    "v2": "TIPS v2 instead",
}
BEFORE = {"dual": "web", "crops": "dual", "tips": "crops", "v2": "tips"}
"""What each arm is compared with."""
METRICS = ("kNN", "kNN 2", "mIoU", "I>T web", "T>I web", "T>I detailed", "I>T detailed 2", "T>I detailed 2")


def _short(recipe: TrainConfig, objectives: Mapping[str, ObjectiveConfig]) -> TrainConfig:
    """Every step at the full submodel: nesting is another question."""
    return replace(recipe, objectives=objectives, submodels=SubmodelSampling(), steps=STEPS)


def report(runs: Runs) -> str:
    """Every metric of every arm, then each arm's difference to the one before it."""
    values = [[LABELS[name], *(runs.mean(name, metric) for metric in METRICS)] for name in ARMS]
    steps = [
        [f"{LABELS[name]}: to `{base}`", *(runs.difference(name, base, metric) for metric in METRICS)]
        for name, base in BEFORE.items()
    ]
    return (
        "# TIPS\n\nTest scenes, full submodel and width. A 2 stands for the second class token.\n\n"
        + markdown(["arm", *METRICS], values)
        + "\n## What each part adds\n\nPaired by seed, 95 % intervals.\n\n"
        + markdown(["part", *METRICS], steps)
    )


def plot(runs: Runs) -> Figure:
    """Every metric by arm."""
    lines: dict[str, list[Estimate]] = {metric: [runs.mean(name, metric) for name in ARMS] for metric in METRICS}
    return curves(lines, list(ARMS), "What each part of TIPS adds, on scenes", "score")


if __name__ == "__main__":
    present(__doc__, FOLDER, ARMS, report, plot)
