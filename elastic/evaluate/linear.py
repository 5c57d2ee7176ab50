"""Linear probe of one feature per image: multinomial logistic regression.

Features are standardised by the training rows' mean and deviation. The loss is the mean cross-entropy plus
`weight_decay / 2` times the squared weights, biases free; it is convex, and L-BFGS goes from zero to its minimum, or
as near as it comes in 500 iterations. The weight decay is the one of a small grid that classifies the validation rows
best; of equal ones the largest. The model tested is the one fitted on the training rows alone.

Source: the protocol of CLIP (arXiv 2103.00020) appendix A. Deviations: a coarser grid, no second fit on training and
validation rows together, and features are standardised.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

WEIGHT_DECAYS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

MAX_ITERATIONS = 500


@dataclass(frozen=True, slots=True)
class Rows:
    """One split."""

    features: Float[np.ndarray, "row dim"]
    classes: Int[np.ndarray, " row"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearScore:
    """Share of rows that got their own class, in [0, 1]."""

    top1: float
    """Of the test rows."""
    val_top1: float
    """Of the validation rows, at the weight decay that they chose."""
    weight_decay: float
    num_rows: int
    """Test rows."""


@dataclass(frozen=True, slots=True)
class LinearClassifier:
    """Logits are `weight @ feature + bias`, on features as they came."""

    weight: Float[np.ndarray, "class dim"]
    bias: Float[np.ndarray, " class"]
    classes: Int[np.ndarray, " class"]
    """The class number that each logit stands for, those of the training rows."""

    def top1(self, rows: Rows) -> float:
        """Share of rows whose largest logit is their class; one that training did not have counts as wrong."""
        logits = rows.features @ self.weight.T + self.bias
        return float((self.classes[logits.argmax(axis=1)] == rows.classes).mean())


def linear_probe(train: Rows, val: Rows, test: Rows, weight_decays: Sequence[float] = WEIGHT_DECAYS) -> LinearScore:
    """Fit at every weight decay, choose by the validation rows, judge the test rows."""
    classifiers = {weight_decay: fit_linear(train, weight_decay) for weight_decay in weight_decays}
    of_val = {weight_decay: classifier.top1(val) for weight_decay, classifier in classifiers.items()}
    chosen = max(weight_decays, key=lambda weight_decay: (of_val[weight_decay], weight_decay))
    top1 = classifiers[chosen].top1(test)
    return LinearScore(top1=top1, val_top1=of_val[chosen], weight_decay=chosen, num_rows=len(test.classes))


def fit_linear(train: Rows, weight_decay: float) -> LinearClassifier:
    """The minimum of the penalised loss on these rows; the penalty is on weights of standardised features."""
    features = train.features.astype(np.float64)
    classes, targets = np.unique(train.classes, return_inverse=True)
    mean, std = features.mean(axis=0), features.std(axis=0)
    scale = np.where(std > 1e-6, std, 1.0)  # a feature that never varies says nothing
    inputs, wanted = torch.from_numpy((features - mean) / scale), torch.from_numpy(targets)
    weight = torch.zeros(len(classes), inputs.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(len(classes), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(F.linear(inputs, weight, bias), wanted) + weight_decay / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    unscaled = weight.detach().numpy() / scale
    return LinearClassifier(unscaled, bias.detach().numpy() - unscaled @ mean, classes)
