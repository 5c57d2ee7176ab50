"""Does UDON help? Its distillation, and its choice of the next domain by the teachers' losses.

    python -m experiments.udon.run --seeds 3

All arms take equally many steps of equal batches, each of one domain. Two questions: classification alone against
the same with distillation, domains in turns; and with distillation, domains in turns against as often as they have
images against as often as their teachers' losses say.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from elastic.evaluate.dataset import load_retrieval_set
from elastic.evaluate.embed import truncate
from elastic.evaluate.uned import image_retrieval
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.udon import Udon
from elastic.profile.tables import MEAN
from elastic.recipes.udon import DOMAINS, udon, udon_by_size, udon_in_turns
from elastic.train.config import TrainConfig
from elastic.train.submodels import SubmodelSampling
from experiments.harness import Arm, Metrics, Runs, curves, markdown, present, train
from experiments.icons import embeddings

STEPS = 300
SEGMENT_STEPS = 60
WIDTH = 64
"""Of the embedding that is judged, UDON's."""
FOLDER = Path(__file__).parent


def distilled(seed: int, folder: Path, *, recipe: TrainConfig) -> Metrics:
    """One of the recipes, shorter."""
    return _measure(_short(recipe), seed, folder)


def classified(seed: int, folder: Path) -> Metrics:
    """Teachers and student learn their classes, and the student does not imitate the teachers."""
    short = _short(udon_in_turns())
    alone = Matryoshka(inner=Udon(logits_weight=0, relations_weight=0), embed_dims=short.model.embed_dims)
    return _measure(replace(short, objectives={"udon": alone}), seed, folder)


ARMS: dict[str, Arm] = {
    "ce": classified,
    "in turns": partial(distilled, recipe=udon_in_turns()),
    "by size": partial(distilled, recipe=udon_by_size()),
    "dynamic": partial(distilled, recipe=udon()),
}
LABELS = {
    "ce": "classification only, in turns",
    "in turns": "UDON, domains in turns",
    "by size": "UDON, by number of images",
    "dynamic": "UDON, by teacher loss",
}


def _short(recipe: TrainConfig) -> TrainConfig:
    return replace(
        recipe,
        name="udon",
        data=replace(recipe.data, segment_steps=SEGMENT_STEPS),
        submodels=SubmodelSampling(),
        optim=replace(recipe.optim, ema_decay=0.99),
        steps=STEPS,
        checkpoint_every=SEGMENT_STEPS,
    )


def _measure(config: TrainConfig, seed: int, folder: Path) -> Metrics:
    trained = train(config, seed, folder)
    full = trained.encoder.space.full
    cut = truncate(embeddings(trained, (full,))[full], WIDTH)
    scores = image_retrieval(cut, cut, load_retrieval_set("icons", "test"))
    recalls = {f"R@1 {domain}": score.recall_at_1 for domain, score in scores.items()}
    return recalls | {"mMP@5": scores[MEAN].mmp_at_5}


def report(runs: Runs) -> str:
    """Both metrics of every arm, its difference to UDON in turns, and R@1 by domain."""
    overall = []
    for arm in ARMS:
        row = [LABELS[arm]]
        for metric in (f"R@1 {MEAN}", "mMP@5"):
            row += [runs.mean(arm, metric), "" if arm == "in turns" else runs.difference(arm, "in turns", metric)]
        overall.append(row)
    domains = [[domain, *(runs.mean(arm, f"R@1 {domain}") for arm in ARMS)] for domain in DOMAINS]
    head = f"Merged index of all domains, mean over domains, width {WIDTH}; differences are paired, 95 % intervals.\n\n"
    return (
        "# UDON\n\n"
        + head
        + markdown(["arm", "R@1", "to UDON in turns", "mMP@5", "to UDON in turns"], overall)
        + "\n## R@1 by domain\n\n"
        + markdown(["domain", *(LABELS[arm] for arm in ARMS)], domains)
    )


def plot(runs: Runs) -> Figure:
    """R@1 by domain."""
    lines = {LABELS[arm]: [runs.mean(arm, f"R@1 {domain}") for domain in (*DOMAINS, MEAN)] for arm in ARMS}
    places = [name.removeprefix("emoji-") for name in (*DOMAINS, MEAN)]
    return curves(lines, places, "What guides the student, and which domain comes next", "R@1, merged index")


if __name__ == "__main__":
    present(__doc__, FOLDER, ARMS, report, plot)
