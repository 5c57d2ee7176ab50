"""Which tokens of a draft stand, and which token follows them: the rule that keeps the target's distribution exact.

A draft token x that was drawn from q is accepted with probability min(1, p(x) / q(x)), where p is the target's
distribution at its place. Behind the first that is not, a token is drawn from what q gave too little of,
norm(max(0, p - q)); behind a draft that stands whole, from the target's next distribution. Every token is then
distributed as if drawn from p, whatever q is. With all probability on one token this is: accept while equal to the
target's best token.

Source: Leviathan et al. (arXiv 2211.17192) section 2.3 and appendix A.1; Chen et al. (arXiv 2302.01318) algorithm 2.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elastic.lm.sampling import draw


class Accepted(NamedTuple):
    """The outcome of one verification, for each sequence of a batch."""

    counts: Int[Tensor, " batch"]
    """Draft tokens that stand, from the first on."""
    following: Int[Tensor, " batch"]
    """The target's own token behind them."""


def accept_greedy(
    drafted: Int[Tensor, "batch gamma"], best: Int[Tensor, "batch gamma_and_one"], most: Int[Tensor, " batch"]
) -> Accepted:
    """Accept while equal to the target's best token, which follows the last accepted one in any case.

    Of each sequence at most `most` drafted tokens count; it is as if no more had been drafted.
    """
    counts = (drafted == best[:, :-1]).long().cumprod(1).sum(1).minimum(most)
    return Accepted(counts, best.gather(1, counts[:, None]).squeeze(1))


def accept_sampled(
    drafted: Int[Tensor, "batch gamma"],
    draft: Float[Tensor, "batch gamma vocab"],
    target: Float[Tensor, "batch gamma_and_one vocab"],
    stands: Float[Tensor, "batch gamma_and_one"],
    follows: Float[Tensor, "batch gamma_and_one"],
    most: Int[Tensor, " batch"],
) -> Accepted:
    """Accept by the ratio of the target's probabilities to the draft's.

    Row i of `draft` is the distribution that `drafted[:, i]` was drawn from. At each place, the chance of `stands`
    decides on the drafted token, and that of `follows` draws the target's own. Of each sequence at most `most` drafted
    tokens count; it is as if no more had been drafted.
    """
    probability = target[:, :-1].gather(2, drafted[..., None]).squeeze(2)
    proposed = draft.gather(2, drafted[..., None]).squeeze(2)
    # Not divided, and strictly less: a token that the target excludes never stands, not even at a chance of 0.
    counts = (stands[:, :-1] * proposed < probability).long().cumprod(1).sum(1).minimum(most)
    row = torch.arange(len(counts), device=counts.device)
    rejected = torch.cat([draft, torch.zeros_like(target[:, :1])], dim=1)[row, counts]
    rejected = rejected * (counts < most)[:, None]  # nothing was proposed behind the draft
    return Accepted(counts, draw(residual(target[row, counts], rejected), follows[row, counts]))


def residual(p: Float[Tensor, "*batch vocab"], q: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """The distribution of what q gave too little of: max(0, p - q), normalised.

    Where that is nothing, p and q are equal but for rounding, and p stands for it.
    """
    missing = (p - q).clamp(min=0)
    total = missing.sum(-1, keepdim=True)
    return torch.where(total > 0, missing / total.clamp(min=torch.finfo(total.dtype).tiny), p)
