"""Does telling hidden patches help supervised training?

    python -m experiments.mim.run --seeds 3

Classification of the salient object of scenes, with and without reconstruction of hidden patches. The second pass
costs as much as the first, so classification alone is also trained for twice the steps.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from elastic.data.config import Shuffled, StreamConfig
from elastic.objectives.base import ObjectiveConfig
from elastic.objectives.classification import Classification
from elastic.objectives.mim import MaskedImages
from elastic.recipes.tips import SCENE_VIEWS, scene_model, tips
from elastic.train.config import TrainConfig
from elastic.train.masking import MaskConfig
from elastic.train.submodels import SubmodelSampling
from experiments.harness import Arm, Estimate, Metrics, Runs, curves, markdown, present, train
from experiments.scenes import measure

STEPS = 200
FOLDER = Path(__file__).parent


def arm(seed: int, folder: Path, *, steps: int, masked: bool = False) -> Metrics:
    """Classification, with hidden patches or without."""
    objectives: dict[str, ObjectiveConfig] = {"classes": Classification()}
    if masked:
        objectives["masked"] = MaskedImages()
    return measure(train(_config(objectives, steps), seed, folder))


ARMS: dict[str, Arm] = {
    "without": partial(arm, steps=STEPS),
    "with": partial(arm, steps=STEPS, masked=True),
    "longer": partial(arm, steps=2 * STEPS),
}
LABELS = {
    "without": "classification",
    "with": "with hidden patches",
    "longer": "classification, twice the steps",
}
METRICS = ("kNN", "linear", "mIoU")


def _config(objectives: Mapping[str, ObjectiveConfig], steps: int) -> TrainConfig:
    recipe, model = tips(), scene_model()
    vision = replace(model.vision, num_cls_tokens=1)
    stream = StreamConfig(
        name="scenes", source="scenes", domains=("scenes",), sampling=Shuffled(batch_size=64), augment=SCENE_VIEWS
    )
    return replace(
        recipe,
        name="mim",
        model=replace(model, vision=vision, text=None),
        data=replace(recipe.data, streams=(stream,)),
        objectives=objectives,
        masking=MaskConfig(ratio=0.5),
        submodels=SubmodelSampling(),
        steps=steps,
    )


def report(runs: Runs) -> str:
    """Every metric of every arm and its difference to classification alone."""
    values = [[LABELS[name], *(runs.mean(name, metric) for metric in METRICS)] for name in ARMS]
    others = [name for name in ARMS if name != "without"]
    gains = [[LABELS[name], *(runs.difference(name, "without", metric) for metric in METRICS)] for name in others]
    return (
        "# Hidden patches beside classification\n\nTest scenes, full submodel.\n\n"
        + markdown(["arm", *METRICS], values)
        + "\n## Difference to classification alone\n\nPaired by seed, 95 % intervals.\n\n"
        + markdown(["arm", *METRICS], gains)
    )


def plot(runs: Runs) -> Figure:
    """Every metric by arm."""
    lines: dict[str, list[Estimate]] = {metric: [runs.mean(name, metric) for name in ARMS] for metric in METRICS}
    return curves(lines, list(ARMS), "Hidden patches beside classification, on scenes", "score")


if __name__ == "__main__":
    present(__doc__, FOLDER, ARMS, report, plot)
