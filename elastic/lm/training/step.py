"""The algorithm on one screen."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from elastic.lm.training.state import MatlmState
from elastic.submodel import Submodel


def train_step(
    state: MatlmState, tokens: Int[Tensor, "batch next"], submodels: Sequence[Submodel]
) -> dict[str, Tensor]:
    """Average the losses of `submodels`, largest first, on the same tokens, then update once.

    With distillation, smaller submodels learn from the largest's logits of this step too. Returns the step's detached
    scalars: `loss`, `grad_norm`, `train/nats/<granularity>` and, of distilled ones, `train/kl/<granularity>`.
    """
    space, share = state.config.decoder.space, 1 / len(submodels)
    report, teacher = {"loss": torch.zeros((), device=tokens.device)}, None
    for submodel in submodels:
        loss, terms, logits = state.learn(tokens, submodel, teacher, share=share, sync=submodel is submodels[-1])
        if state.config.distillation > 0 and submodel == space.full:
            teacher = logits
        report["loss"] += share * loss
        report |= {f"train/{name}/{space.name(submodel)}": value for name, value in terms.items()}
    report["grad_norm"] = state.update()
    return report
