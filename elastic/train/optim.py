"""AdamW, what it decays, and the learning rate as a function of the step.

A submodel's step leaves the unsliced rows of a nested weight with a gradient of zero, not without one, so AdamW's
moments and decay go on for them; this matches MatFormer's public code. Keep the second beta at or below 0.99:
with a longer memory the rarely trained rows take oversized steps when they are trained.

A pretrained image tower can learn slower than what is new on top of it, and not at all at first. Source: UDON's code
(arXiv 2406.08332): a hundredth of the rate, and none for 2 of 10 epochs, in which AdamW's moments already accumulate.
Deviation: its embedding head and the text tower are new, so they always learn at the full rate.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from elastic.errors import ConfigError

UNDECAYED = frozenset({"pos_embed", "cls_token", "reg_token", "teacher_bias"})
"""Parameters with two or more axes that are not weights: positions, learned tokens (timm's names), stacked biases."""

_IMAGE_TOWER, _NEW_HEAD = "encoder.image.", "encoder.image.head."


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """AdamW with clipping, a cosine learning rate with linear warm-up, and the averaged weights."""

    learning_rate: float = 1e-3
    """The highest rate, reached at the end of the warm-up."""
    final_fraction: float = 0.0
    """The rate at the last step, as a fraction of the highest."""
    warmup_fraction: float = 0.05
    """Share of the steps over which the rate rises linearly."""
    weight_decay: float = 0.05
    """Decay of weights with two or more axes; norms, biases, temperatures, positions and tokens have none."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Memory of the first and second moment."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    ema_decay: float = 0.998
    """Decay of the averaged weights per step: those of the teacher and of the delivered model."""
    encoder_rate: float = 1.0
    """Factor of the learning rate of the image tower below its embedding head (UDON, from a checkpoint: 0.01)."""
    freeze_encoder: float = 0.0
    """Share of the run before which that part does not move at all (UDON: 0.2)."""

    def __post_init__(self) -> None:
        rules = {
            "learning_rate": (self.learning_rate > 0, "must be positive"),
            "final_fraction": (0 <= self.final_fraction <= 1, "must be between 0 and 1"),
            "warmup_fraction": (0 <= self.warmup_fraction < 1, "must be at least 0 and below 1"),
            "weight_decay": (self.weight_decay >= 0, "must not be negative"),
            "betas": (all(0 <= beta < 1 for beta in self.betas), "must be at least 0 and below 1"),
            "max_grad_norm": (self.max_grad_norm > 0, "must be positive"),
            "ema_decay": (0 <= self.ema_decay < 1, "must be at least 0 and below 1"),
            "encoder_rate": (self.encoder_rate >= 0, "must not be negative"),
            "freeze_encoder": (0 <= self.freeze_encoder <= 1, "must be between 0 and 1"),
        }
        for field, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"optim.{field}", getattr(self, field), rule)


def learning_rate_at(step: int, steps: int, config: OptimConfig) -> float:
    """The rate of `step`, counted from 0, in a run of `steps`: linear warm-up, then half a cosine."""
    warmup = round(config.warmup_fraction * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_fraction + (1 - config.final_fraction) * cosine)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: weights with two or more axes, except positions and learned tokens."""
    return parameter.ndim >= 2 and name.rpartition(".")[2] not in UNDECAYED


def is_held_back(name: str) -> bool:
    """Whether `encoder_rate` and `freeze_encoder` apply: the image tower below its embedding head."""
    return name.startswith(_IMAGE_TOWER) and not name.startswith(_NEW_HEAD)


def encoder_rate_at(progress: float, config: OptimConfig) -> float:
    """The factor of the image tower's rate after this share of the run."""
    return 0.0 if progress < config.freeze_encoder else config.encoder_rate


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over every trainable parameter, in a decayed and an undecayed group.

    If the image tower learns at another rate than the rest, each has two groups of its own.
    """
    is_split = config.encoder_rate != 1 or config.freeze_encoder > 0
    parts: dict[tuple[bool, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            parts[is_split and is_held_back(name), is_decayed(name, parameter)].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": params, "weight_decay": config.weight_decay if decayed else 0.0, "held_back": held_back}
        for (held_back, decayed), params in sorted(parts.items(), reverse=True)
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, steps: int, config: OptimConfig) -> None:
    """The rate of every group for `step`, counted from 0, in a run of `steps`."""
    rate, factor = learning_rate_at(step, steps, config), encoder_rate_at(step / steps, config)
    for group in optimizer.param_groups:
        group["lr"] = rate * factor if group["held_back"] else rate
