"""Is one model trained on everything worth as much as models trained on one thing each, at equal compute?

    python -m experiments.joint.run --seeds 3

Three arms of equally many operations (counted, `operations_per_step`): `tips` sees scenes with captions, `udon`
labelled icons, and `joint` both, and synthetic scenes. All train the full submodel of the same image tower, which
starts from the bundled one with new class tokens.
"""

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elastic.data.dense import load_dense_set
from elastic.data.feed import LocalFeed
from elastic.evaluate.features import image_embeddings, read_images
from elastic.evaluate.zero_shot import zero_shot
from elastic.recipes.joint import joint
from elastic.recipes.tips import tips
from elastic.train.config import TrainConfig
from elastic.train.preparation import carried_fields, check_data, dimensions, feed_config, make_tokenizer
from elastic.train.state import TrainState
from elastic.train.step import train_step
from elastic.train.submodels import SubmodelSampling
from experiments.harness import Arm, Estimate, Metrics, Runs, Trained, curves, markdown, present, train
from experiments.icons import embeddings, recall
from experiments.scenes import DOMAINS, measure

TIPS_STEPS = 200
"""The budget: what so many steps of `tips` take."""
SEGMENT_STEPS = 50
FOLDER = Path(__file__).parent


def tips_alone() -> TrainConfig:
    """Scenes with both captions, seen by the tower of `joint`."""
    return _short(replace(tips(), model=joint().model))


def udon_alone() -> TrainConfig:
    """The labelled streams of `joint`, and of its objectives the one that labels feed."""
    full = joint()
    labelled = tuple(stream for stream in full.data.streams if stream.source == "icons")
    only_udon = replace(
        full,
        model=replace(full.model, text=None),
        data=replace(full.data, streams=labelled),
        objectives={"udon": full.objectives["udon"]},
    )
    return _short(only_udon)


def all_together() -> TrainConfig:
    """The recipe `joint`."""
    return _short(joint())


CONFIGS = {"tips": tips_alone, "udon": udon_alone, "joint": all_together}


def arm(seed: int, folder: Path, *, name: str) -> Metrics:
    """Train for the budget, then measure retrieval of icons, and classes, captions and segments of scenes."""
    config = CONFIGS[name]()
    steps = round(TIPS_STEPS * operations_per_step("tips") / operations_per_step(name))
    trained = train(replace(config, steps=steps), seed, folder)
    full = trained.encoder.space.full
    rows = embeddings(trained, (full,))[full]
    return {"steps": steps, "R@1 icons": recall(rows, rows), **measure(trained), **_zero_shot(trained)}


ARMS: dict[str, Arm] = {name: partial(arm, name=name) for name in CONFIGS}
METRICS = ("R@1 icons", "kNN", "zero-shot", "I>T detailed", "T>I detailed", "mIoU")


@cache
def operations_per_step(name: str) -> float:
    """Floating-point operations of matrix products and convolutions in a step, mean over the run's streams."""
    config = CONFIGS[name]()
    tokenizer = make_tokenizer(config, catalog := check_data(config))
    state = TrainState(config, dimensions(config, catalog), torch.device("cpu"))
    weights: dict[frozenset[str], float] = {}
    for weight, fields in zip(config.data.weights, carried_fields(config, catalog), strict=True):
        weights[fields] = weights.get(fields, 0.0) + weight
    counts: dict[frozenset[str], int] = {}
    for batch in LocalFeed(feed_config(config, tokenizer, {})).batches(0, config.steps):
        if batch.present not in counts:
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                train_step(state, [batch], [state.space.full], rank=0)
            counts[batch.present] = counter.get_total_flops()
        if counts.keys() == weights.keys():
            break
    return sum(weights[fields] * count for fields, count in counts.items()) / sum(weights.values())


def _short(recipe: TrainConfig) -> TrainConfig:
    return replace(
        recipe,
        name="joint",
        data=replace(recipe.data, segment_steps=SEGMENT_STEPS),
        submodels=SubmodelSampling(),
    )


def _zero_shot(trained: Trained) -> Metrics:
    if trained.tokenizer is None:
        return {}
    data = load_dense_set("scenes", "test", DOMAINS)
    labels = data.source.metadata["label"].take(data.row_ids).to_pylist()
    names, classes = np.unique(labels, return_inverse=True)
    images = read_images(data.source, data.row_ids, trained.preprocess)
    embedded = image_embeddings(trained.encoder, images, [trained.encoder.space.full])
    scores = zero_shot(trained.encoder, trained.tokenizer, embedded, classes, names.tolist())
    return {"zero-shot": scores[-1].top1}


def report(runs: Runs) -> str:
    """One table: every arm by every metric, then what `joint` is ahead of each."""
    values = [[name, f"{runs.mean(name, 'steps').mean:.0f}", *_row(runs, name)] for name in ARMS]
    gains = [
        [f"joint to {name}", *(runs.difference("joint", name, metric) for metric in METRICS)]
        for name in ("tips", "udon")
    ]
    return (
        "# Joint training against single objectives, at equal compute\n\nFull submodel and width. `R@1 icons`: merged "
        "index of 12 domains; the rest on test scenes, first class token.\n\n"
        + markdown(["arm", "steps", *METRICS], values)
        + "\n## What joint is ahead of\n\nPaired by seed, 95 % intervals.\n\n"
        + markdown(["", *METRICS], gains)
    )


def _row(runs: Runs, name: str) -> list[Estimate]:
    return [runs.mean(name, metric) for metric in METRICS]


def plot(runs: Runs) -> Figure:
    """Every metric by arm."""
    lines = {name: _row(runs, name) for name in ARMS}
    return curves(lines, METRICS, "Joint training against single objectives, at equal compute", "score")


if __name__ == "__main__":
    present(__doc__, FOLDER, ARMS, report, plot)
