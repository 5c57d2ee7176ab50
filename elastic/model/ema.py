"""The averaged weights: the teacher of self-distillation, and what a run delivers."""

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def decay_at(step: int, decay: float) -> float:
    """The decay after `step` updates: short memory at first, so that random weights are soon forgotten."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_average(average: nn.Module, source: nn.Module, decay: float) -> None:
    """Move every parameter of `average` towards `source`: `a <- decay * a + (1 - decay) * s`; buffers are copied."""
    move = get_ema_multi_avg_fn(decay)  # all parameters in few kernels
    move(list(average.parameters()), list(source.parameters()), None)
    for kept, new in zip(average.buffers(), source.buffers(), strict=True):
        kept.copy_(new)
