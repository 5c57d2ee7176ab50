"""Self-distillation into prototypes: a head that scores learned directions, its averaged copy, and balanced targets.

The student's scores of one view are to predict the teacher's scores of another. Two things keep all images from
meeting in one prototype: sharpening (the teacher's temperature is the lower one) with a running centre, or the
Sinkhorn-Knopp balance of a whole batch.

Sources: head, centre and sharpening, DINO (arXiv 2104.14294) sections 3.1 and 5.3; Sinkhorn-Knopp, SwAV
(arXiv 2006.09882) and google-research/syn-rep-learn. The scores are cosines, as the last layer's weights are
normalised and not scaled.
"""

import copy
import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from elastic.errors import ConfigError
from elastic.model.ema import update_average
from elastic.objectives.base import Terms
from elastic.objectives.distributed import global_sum

_INIT_STD = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Prototypes:
    """Sizes of a head, and how its targets are kept from collapsing."""

    count: int = 1024
    """Prototypes (TIPS: 32,768; for small models a head of that size costs more than the model)."""
    hidden: int = 384
    """Width of the head's two hidden layers (DINO: 2,048)."""
    bottleneck: int = 128
    """Width that prototypes are compared in (DINO: 256)."""
    balance: Literal["centre", "sinkhorn"] = "centre"
    """What keeps prototypes in equal use (TIPS: centre; SynCLR: sinkhorn)."""
    centre_momentum: float = 0.9
    """Share of the centre that is kept at each update."""
    student_temperature: float = 0.1
    """Softmax temperature of the student's scores."""
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    """The teacher's at the start, and after `warmup`; below the student's, which sharpens targets."""
    warmup: float = 0.1
    """Share of the run over which the teacher's temperature moves."""

    def __post_init__(self) -> None:
        if min(self.count, self.hidden, self.bottleneck) < 1:
            raise ConfigError("prototypes", self, "needs positive sizes")
        if min(self.student_temperature, *self.teacher_temperature) <= 0:
            raise ConfigError("prototypes", self, "needs positive temperatures")
        if not (0 <= self.centre_momentum < 1 and 0 <= self.warmup <= 1):
            raise ConfigError("prototypes", self, "needs 0 <= centre_momentum < 1 and 0 <= warmup <= 1")

    def teacher_temperature_at(self, progress: float) -> float:
        """Linear over the warm-up, constant after it."""
        start, end = self.teacher_temperature
        return end if self.warmup == 0 else start + (end - start) * min(1.0, progress / self.warmup)


class PrototypeHead(nn.Module):
    """Tokens to cosines with every prototype."""

    def __init__(self, width: int, config: Prototypes) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=_INIT_STD)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.randn(config.count, config.bottleneck) * _INIT_STD)

    def forward(self, tokens: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch prototypes"]:
        """Cosines in [-1, 1]."""
        return F.normalize(self.mlp(tokens), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class PrototypeMatching(nn.Module):
    """A trained head, the averaged copy of it that sets the targets, and the centre of the averaged one's scores."""

    centre: Float[Tensor, " prototypes"]

    def __init__(self, width: int, config: Prototypes) -> None:
        super().__init__()
        self.config = config
        self.student = PrototypeHead(width, config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(config.count))
        self._seen = torch.zeros(config.count + 1)
        """Sum of the teacher's scores since the last update, and their number."""

    def targets(
        self, tokens: Float[Tensor, "*batch width"], progress: float
    ) -> tuple[Float[Tensor, "*batch prototypes"], Terms]:
        """What the teacher's tokens say, and how healthy that is. The centre is moved later, by `after_step`."""
        with torch.no_grad():
            scores = self.teacher(tokens)
            flat = scores.flatten(0, -2)
            self._seen = self._seen.to(flat.device) + torch.cat([flat.sum(dim=0), flat.new_tensor([len(flat)])])
            temperature = self.config.teacher_temperature_at(progress)
            if self.config.balance == "centre":
                targets = ((scores - self.centre) / temperature).softmax(dim=-1)
            else:
                targets = sinkhorn(flat, temperature).view_as(scores)
            return targets, self._health(targets.flatten(0, -2))

    def losses(
        self, tokens: Float[Tensor, "*batch width"], targets: Float[Tensor, "*batch prototypes"]
    ) -> Float[Tensor, "*batch"]:
        """Cross-entropy of the student's scores to the targets; starts near the log of the number of prototypes."""
        log_probabilities = (self.student(tokens) / self.config.student_temperature).log_softmax(dim=-1)
        return -(targets * log_probabilities).sum(dim=-1)

    @torch.no_grad()
    def after_step(self, decay: float) -> None:
        """Move the averaged head, and the centre towards the mean of what all workers' teachers said."""
        update_average(self.teacher, self.student, decay)
        if self._seen[-1] == 0:  # no batch of this step fed the objective, on any worker
            return
        seen = global_sum(self._seen)
        self.centre.lerp_(seen[:-1] / seen[-1], 1 - self.config.centre_momentum)
        self._seen = torch.zeros_like(self._seen)

    def _health(self, targets: Float[Tensor, "rows prototypes"]) -> Terms:
        most = math.log(self.config.count)
        return {
            # 1: prototypes in equal use; 0: all rows in one.
            "collapse@use": entropy(targets.mean(dim=0)) / most,
            # 1: each row decided; 0: no row says anything.
            "certainty@rows": 1 - entropy(targets).mean() / most,
            "norm@centre": self.centre.norm(),
        }


def entropy(probabilities: Float[Tensor, "*batch outcomes"]) -> Float[Tensor, "*batch"]:
    """In nats."""
    return torch.special.entr(probabilities).sum(dim=-1)


def sinkhorn(
    scores: Float[Tensor, "rows prototypes"], temperature: float, iterations: int = 3
) -> Float[Tensor, "rows prototypes"]:
    """Targets of cosines: every row sums to 1 and, as nearly as possible, all prototypes share all workers' rows."""
    shares = ((scores.float() - 1) / temperature).exp()  # cosines: no exponent is above 0
    num_rows = global_sum(shares.new_tensor(float(len(shares))))
    shares = shares / global_sum(shares.sum())
    for _ in range(iterations):
        shares = shares / (global_sum(shares.sum(dim=0)) * shares.shape[1])
        shares = shares / (shares.sum(dim=1, keepdim=True) * num_rows)
    return shares * num_rows
