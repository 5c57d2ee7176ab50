"""Does UDON help? Its distillation, and its choice of the next domain by the teachers' losses.

    python -m experiments.udon.run --seeds 3

All arms take equally many steps of equal batches, each of one domain. Two questions: classification alone against
the same with distillation, domains in turns; and with distillation, domains in turns against as often as they have
images against as often as their teachers' losses say.

Each is asked twice: of an encoder that starts from nothing, and of the bundled one, which knows these domains already
and, as in the paper, stands still for a fifth of the run and then learns more slowly than the heads.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from elastic.evaluate.dataset import load_retrieval_set
from elastic.evaluate.embed import truncate
from elastic.evaluate.uned import image_retrieval
from elastic.model.pretrained import BUNDLED
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
ENCODER_RATE = 0.1
"""Of a trained encoder; the paper's hundredth is for far longer runs."""
FOLDER = Path(__file__).parent


def arm(seed: int, folder: Path, *, recipe: TrainConfig, distil: bool, trained: bool) -> Metrics:
    """One of the recipes, shorter; without `distil` the student does not imitate the teachers."""
    config = _short(recipe)
    if not distil:
        alone = Matryoshka(inner=Udon(logits_weight=0, relations_weight=0), embed_dims=config.model.embed_dims)
        config = replace(config, objectives={"udon": alone})
    if trained:
        vision = replace(config.model.vision, checkpoint=BUNDLED)
        optim = replace(config.optim, encoder_rate=ENCODER_RATE, freeze_encoder=0.2)
        config = replace(config, model=replace(config.model, vision=vision), optim=optim)
    return _measure(config, seed, folder)


_KINDS = {
    "ce": partial(arm, recipe=udon_in_turns(), distil=False),
    "in turns": partial(arm, recipe=udon_in_turns(), distil=True),
    "by size": partial(arm, recipe=udon_by_size(), distil=True),
    "dynamic": partial(arm, recipe=udon(), distil=True),
}
STARTS = {"": "From nothing", "trained ": "From the bundled encoder"}
"""What precedes the name of a kind in that of an arm, and what it says."""
ARMS: dict[str, Arm] = {
    start + kind: partial(train_and_measure, trained=start != "")
    for start in STARTS
    for kind, train_and_measure in _KINDS.items()
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
    """For each start: both metrics of every kind, its difference to UDON in turns, and R@1 by domain."""
    head = f"Merged index of all domains, mean over domains, width {WIDTH}; differences are paired, 95 % intervals.\n"
    return f"# UDON\n\n{head}\n" + "\n".join(_section(runs, start, title) for start, title in STARTS.items())


def _section(runs: Runs, start: str, title: str) -> str:
    overall = []
    for kind, label in LABELS.items():
        row = [label]
        for metric in (f"R@1 {MEAN}", "mMP@5"):
            difference = "" if kind == "in turns" else runs.difference(start + kind, f"{start}in turns", metric)
            row += [runs.mean(start + kind, metric), difference]
        overall.append(row)
    domains = [[domain, *(runs.mean(start + kind, f"R@1 {domain}") for kind in LABELS)] for domain in DOMAINS]
    return (
        f"## {title}\n\n"
        + markdown(["arm", "R@1", "to UDON in turns", "mMP@5", "to UDON in turns"], overall)
        + "\nR@1 by domain:\n\n"
        + markdown(["domain", *LABELS.values()], domains)
    )


def plot(runs: Runs) -> Figure:
    """R@1 by domain, of every kind from either start."""
    places = [name.removeprefix("emoji-") for name in (*DOMAINS, MEAN)]
    lines = {
        f"{title}: {label}": [runs.mean(start + kind, f"R@1 {domain}") for domain in (*DOMAINS, MEAN)]
        for start, title in STARTS.items()
        for kind, label in LABELS.items()
    }
    return curves(lines, places, "What guides the student, and which domain comes next", "R@1, merged index")


if __name__ == "__main__":
    present(__doc__, FOLDER, ARMS, report, plot)
