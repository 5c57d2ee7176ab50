"""How well submodels predict held-out text, and how far they are from what the largest predicts.

Everything is teacher-forced: each token is predicted from the true text before it. Source of the two consistency
measures: MatFormer (arXiv 2310.07707) section 4.1; agreement there is of generated text, and the direction of KL, here
KL(full || submodel), is not stated.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from elastic.lm.training.losses import divergence, next_token_nats
from elastic.model.decoder import Decoder
from elastic.submodel import Submodel

Name = TypeVar("Name")
Predict: TypeAlias = Callable[[Tensor], Tensor]
"""Tokens in, the logits of what follows each out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Means over the tokens of held-out text."""

    nats: float
    """Cross-entropy of the next token."""
    agreement: float
    """Share of positions at which the most likely token is the full model's."""
    kl: float
    """KL(full || submodel) of the next token, in nats."""


def measure(
    decoder: Decoder,
    batches: Iterable[Tensor],
    submodels: Sequence[Submodel],
    *,
    precision: str = "fp32",
) -> dict[Submodel, Scores]:
    """Scores of submodels on batches of blocks, each one token longer than what is read."""
    weight = decoder.model.embed_tokens.weight
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bf16"):
        models = {submodel: partial(decoder, submodel=submodel) for submodel in submodels}
        full = partial(decoder, submodel=decoder.space.full)
        return compare(models, full, (batch.to(weight.device) for batch in batches))


@torch.no_grad()
def compare(models: Mapping[Name, Predict], full: Predict, batches: Iterable[Tensor]) -> dict[Name, Scores]:
    """Scores of any models beside a full one, on the device of the batches."""
    sums: dict[Name, Tensor] = {}
    count = 0
    for tokens in batches:
        count += len(tokens)
        reference = full(tokens[:, :-1])
        for name, model in models.items():
            logits = model(tokens[:, :-1])
            agreement = (logits.argmax(-1) == reference.argmax(-1)).float().mean()
            found = torch.stack([next_token_nats(logits, tokens), agreement, divergence(reference, logits)])
            sums[name] = sums.get(name, 0) + len(tokens) * found.double()
    assert count > 0, "there is held-out text"
    means = {name: (total / count).tolist() for name, total in sums.items()}
    return {name: Scores(nats=nats, agreement=agreement, kl=kl) for name, (nats, agreement, kl) in means.items()}
