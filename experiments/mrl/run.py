"""Does MRL cost anything? Every width of one embedding against embeddings trained at one width each.

    python -m experiments.mrl.run --seeds 3

All arms take equally many steps on equal batches. Beside the widths trained alone: the first coordinates of an
embedding that was trained at its full width only, and its principal components (fitted on the training split).
The feed-forward blocks are not nested here, and a quarter as wide, so that nothing but the widths differs.
"""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from elastic.evaluate.embed import truncate
from experiments.harness import Arm, Metrics, Runs, Trained, curves, markdown, present, train
from experiments.icons import embeddings, recall, short_icons

STEPS = 300
WIDTHS = (8, 16, 32, 64, 128)
FOLDER = Path(__file__).parent


def matryoshka(seed: int, folder: Path) -> Metrics:
    """One model, every width trained."""
    test = _embed(_train(WIDTHS, seed, folder), "test")
    return {str(width): _cut_recall(test, width) for width in WIDTHS}


def single(seed: int, folder: Path, *, width: int) -> Metrics:
    """One model whose embedding has this width."""
    return {str(width): _cut_recall(_embed(_train((width,), seed, folder), "test"), width)}


def full(seed: int, folder: Path) -> Metrics:
    """One model trained at the full width only, its first coordinates, and its principal components."""
    trained = _train(WIDTHS[-1:], seed, folder)
    test, fitted = _embed(trained, "test"), _embed(trained, "train")
    mean = fitted.mean(axis=0)
    components = np.linalg.svd(fitted - mean, full_matrices=False)[2]
    turned = ((test - mean) @ components.T).astype(np.float32)
    sliced = {str(width): _cut_recall(test, width) for width in WIDTHS}
    return sliced | {f"pca {width}": _cut_recall(turned, width) for width in WIDTHS}


def _train(widths: tuple[int, ...], seed: int, folder: Path) -> Trained:
    return train(short_icons("mrl", STEPS, ffn_fractions=(1.0,), mlp_ratio=1.0, embed_dims=widths), seed, folder)


def _embed(trained: Trained, split: str) -> np.ndarray:
    submodel = trained.encoder.space.full
    return embeddings(trained, (submodel,), split)[submodel]


def _cut_recall(rows: np.ndarray, width: int) -> float:
    cut = truncate(rows, width)
    return recall(cut, cut)


ARMS: dict[str, Arm] = {"mrl": matryoshka, "full": full} | {
    f"alone {width}": partial(single, width=width) for width in WIDTHS[:-1]
}


def report(runs: Runs) -> str:
    """The table."""
    rows = [
        ["MRL, one model", *(runs.mean("mrl", str(width)) for width in WIDTHS)],
        ["one model per width", *(runs.mean(_alone(width), str(width)) for width in WIDTHS)],
        ["first coordinates of the widest", *(runs.mean("full", str(width)) for width in WIDTHS)],
        ["principal components of the widest", *(runs.mean("full", f"pca {width}") for width in WIDTHS)],
        ["MRL - one model per width", *(runs.difference("mrl", _alone(width), str(width)) for width in WIDTHS)],
        ["MRL - components", *(runs.difference("mrl", "full", str(width), f"pca {width}") for width in WIDTHS)],
    ]
    head = "R@1, every image against all others of the test split, mean over domains; mean and 95 % interval over seeds"
    return f"{head}\n\n" + markdown(["embed_dim", *map(str, WIDTHS)], rows)


def _alone(width: int) -> str:
    return "full" if width == WIDTHS[-1] else f"alone {width}"


def plot(runs: Runs) -> Figure:
    """R@1 by width."""
    lines = {
        "MRL, one model": [runs.mean("mrl", str(width)) for width in WIDTHS],
        "one model per width": [runs.mean(_alone(width), str(width)) for width in WIDTHS],
        "first coordinates of the widest": [runs.mean("full", str(width)) for width in WIDTHS],
        "principal components of the widest": [runs.mean("full", f"pca {width}") for width in WIDTHS],
    }
    title = "One embedding cut to each embed_dim against one embedding for each"
    return curves(lines, list(map(str, WIDTHS)), title, "R@1, mean over 12 domains")


if __name__ == "__main__":
    present(__doc__, FOLDER, ARMS, report, plot)
