"""Signs that what is learned collapses: all images alike, or all in one prototype.

Losses do not tell. Self-distillation is best solved by giving every image the same answer, and then its loss is low.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from elastic.objectives.base import Terms

LOWEST = 0.15
"""Below it a run warns. Values are logarithms over their greatest: at 0.15, 1024 prototypes are used as evenly as 3
would be, and 128 coordinates vary as independently as 2. On the bundled icons, untrained models have a `collapse@rank`
of 0.23 to 0.5, the trained one of 0.62. Batches of a few classes or a few rows may not be able to reach as much."""
_LEAST_VARIANCE = 0.01
"""Of unit embeddings: what counts as none. Two images then have a cosine of 0.99 on average; in untrained models of the
icons, of 0.2 to 0.92."""
_ROUNDING = 1e-6
"""Variance of unit embeddings that is surely nothing but rounding."""
_NAME = re.compile(r".+/collapse@[^/]+/[^/]+")


def collapsed(record: Mapping[str, Any]) -> dict[str, float]:
    """Every `<objective>/collapse@<what>/<granularity>` of a record that is too low."""
    return {name: value for name, value in record.items() if _NAME.fullmatch(name) and value < LOWEST}


class Alarm:
    """Hears the records of a run and warns once of each name that is too low twice in a row.

    Once may be a start: until its centre has moved, a teacher sees all images in one prototype.
    """

    def __init__(self) -> None:
        self._low: set[str] = set()
        self._warned: set[str] = set()

    def hear(self, record: Mapping[str, Any]) -> list[str]:
        """What there is to warn of, as sentences."""
        found = collapsed(record)
        new = sorted((found.keys() & self._low) - self._warned)
        self._low = (self._low - record.keys()) | found.keys()  # a sampled granularity is not in every record
        self._warned |= set(new)
        return [
            f"{name} is {found[name]:.2f} at step {record['step']} (1 is healthy, below {LOWEST} collapsed): "
            "the model may be learning to tell nothing apart"
            for name in new
        ]


def embedding_health(embeddings: Float[Tensor, "rows dim"]) -> Terms:
    """How much unit embeddings vary, and in how many directions; both between 0, not at all, and 1.

    `collapse@spread` is the logarithm of their variance, from the least that counts to 1. `collapse@rank` is that of
    the participation ratio of their covariance's eigenvalues, (sum)^2 / sum of squares, over its greatest. Fewer than
    three rows cannot vary in two directions, and pass for healthy.
    """
    rows, dim = embeddings.shape
    normalised = F.normalize(embeddings, dim=1)
    centred = normalised - normalised.mean(dim=0)
    covariance = centred.T @ centred / rows
    variance, most = covariance.trace(), min(dim, rows - 1)
    # With a little added below, rounding in embeddings that are all equal is no direction.
    ratio = variance.square() / (covariance.square().sum() + _ROUNDING**2)
    rank = ratio.clamp(min=1).log() / math.log(most) if most > 1 else torch.ones_like(ratio)
    return {
        "collapse@rank": rank,
        "collapse@spread": 1 - variance.clamp(min=_LEAST_VARIANCE).log() / math.log(_LEAST_VARIANCE),
    }
