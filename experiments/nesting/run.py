"""Does nesting cost anything? One nested model against models trained one size each, at equal total cost.

    python -m experiments.nesting.run --seeds 3

Each of the four sizes is trained alone on N steps; the nested model samples one size a step for 4 N steps, so each
size is trained on N steps in expectation, for the same cost (MatFormer's accounting). Beside them: the largest alone
for 4 N steps, which is what elasticity is paid with, its naive truncation, and, at the cost of the nested run, steps
that always train the largest and one other size, with and without alignment of the other to the largest.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from elastic.objectives.alignment import Alignment
from elastic.submodel import Space
from elastic.train.config import TrainConfig
from elastic.train.submodels import SubmodelSampling
from experiments.harness import Arm, Metrics, Runs, curves, markdown, present, train
from experiments.icons import embeddings, recall, short_icons

STEPS = 120
"""N: steps of a size trained alone."""
SIZES = {"S": 0.5, "M": 1.0, "L": 2.0, "XL": 4.0}
"""MLP ratio of each size: 1/8, 1/4, 1/2 and all of the full width."""
FOLDER = Path(__file__).parent


def nested(seed: int, folder: Path) -> Metrics:
    """All sizes in one model, one of them a step."""
    return _measure(short_icons("nested", 4 * STEPS), seed, folder)


def pair(seed: int, folder: Path, *, aligned: bool) -> Metrics:
    """The largest and one other size every step: 1.53 full steps each (S, M, L in turn), so fewer of them."""
    sampling = SubmodelSampling(policy="anchored", k=1)
    config = short_icons("pair", round(4 * STEPS * 0.646 / 1.528), submodels=sampling)
    if aligned:
        config = replace(config, objectives=config.objectives | {"alignment": Alignment(kind="cosine")})
    return _measure(config, seed, folder)


def alone(seed: int, folder: Path) -> Metrics:
    """Every size as a model of its own."""
    found, spaces = {}, {}
    for name, ratio in SIZES.items():
        config = short_icons(name, STEPS, ffn_fractions=(1.0,), mlp_ratio=ratio)
        trained = train(config, seed, folder)
        full = trained.encoder.space.full
        spaces[name] = embeddings(trained, (full,))[full]
        found[name] = recall(spaces[name], spaces[name])
    return found | {f"{name}->XL": recall(spaces[name], spaces["XL"]) for name in SIZES}


def largest(seed: int, folder: Path) -> Metrics:
    """The largest alone for as many steps as the nested run, and its first hidden units."""
    trained = train(short_icons("XL", 4 * STEPS, ffn_fractions=(1.0,)), seed, folder)
    full = trained.encoder.space
    cuts = Space(full.depth, tuple(round(full.ffn_dims[-1] * ratio / 4) for ratio in SIZES.values()), full.embed_dims)
    by_size = dict(zip(SIZES, cuts.granularities.values(), strict=True))
    found = embeddings(trained, tuple(by_size.values()))
    return {name: recall(found[submodel], found[submodel]) for name, submodel in by_size.items()}


def _measure(config: TrainConfig, seed: int, folder: Path) -> Metrics:
    trained = train(config, seed, folder)
    sizes = trained.encoder.space.granularities
    found = embeddings(trained, tuple(sizes.values()))
    own = {name: recall(found[submodel], found[submodel]) for name, submodel in sizes.items()}
    full = found[trained.encoder.space.full]
    return own | {f"{name}->XL": recall(found[submodel], full) for name, submodel in sizes.items()}


ARMS: dict[str, Arm] = {
    "nested": nested,
    "alone": alone,
    "largest": largest,
    "pair": partial(pair, aligned=False),
    "pair, aligned": partial(pair, aligned=True),
}
LABELS = {
    "nested": "one nested model, 4 N steps",
    "alone": "four models, N steps each",
    "largest": "XL alone, 4 N steps, truncated",
    "pair": "nested, XL and one other a step",
    "pair, aligned": "the same, aligned to XL",
}


def report(runs: Runs) -> str:
    """The tables."""
    rows = [[LABELS[arm], *(runs.mean(arm, name) for name in SIZES)] for arm in ARMS]
    gaps = [["nested - alone", *(runs.difference("nested", "alone", name) for name in SIZES)]]
    gaps.append(["aligned - pair", *(runs.difference("pair, aligned", "pair", name) for name in SIZES)])
    cross = [[LABELS[arm], *(runs.mean(arm, f"{name}->XL") for name in SIZES)] for arm in ARMS if arm != "largest"]
    cross.append(["aligned - pair", *(runs.difference("pair, aligned", "pair", f"{name}->XL") for name in SIZES)])
    return "\n".join(
        [
            "R@1, every image against all others of the test split, mean over domains; mean and 95 % interval of seeds",
            "",
            markdown(["own index", *SIZES], rows + gaps),
            markdown(["index of XL", *SIZES], cross),
        ]
    )


def plot(runs: Runs) -> Figure:
    """R@1 by size."""
    lines = {LABELS[arm]: [runs.mean(arm, name) for name in SIZES] for arm in ARMS}
    title = "Nesting against one model per size, at equal total cost"
    return curves(lines, list(SIZES), title, "R@1, mean over 12 domains")


if __name__ == "__main__":
    present(__doc__, FOLDER, ARMS, report, plot)
