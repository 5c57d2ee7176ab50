"""Patches as tokens: a k-means codebook that is fitted on the first batches of a run and frozen then.

It needs no trained tokenizer and no pass over the data before a run. Everything is a buffer: workers hold the same
codes, since sums are taken over all of them, and a run that is interrupted while it fits resumes exactly.

Sources: k-means++ (Arthur and Vassilvitskii, SODA 2007) for the first codes; mini-batch k-means (Sculley, WWW 2010)
for their means: each code is the mean of all patches that were ever assigned to it. A code that a batch leaves empty
takes the place of the patch that is worst described.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from elastic.errors import ConfigError
from elastic.objectives.distributed import gather, global_sum

_SEED = 0
"""Of the draws for the first codes, which have to be the same on every worker."""


class Codebook(nn.Module):
    """Codes and how much each has seen."""

    codes: Float[Tensor, "codes dim"]
    weights: Float[Tensor, " codes"]
    num_fits: Int[Tensor, ""]

    def __init__(self, num_codes: int, dim: int, fit_steps: int) -> None:
        super().__init__()
        self._fit_steps = fit_steps
        self.register_buffer("codes", torch.zeros(num_codes, dim))
        self.register_buffer("weights", torch.zeros(num_codes))
        self.register_buffer("num_fits", torch.zeros((), dtype=torch.int64))

    @property
    def is_fitted(self) -> bool:
        """Whether the codes are frozen."""
        return int(self.num_fits) >= self._fit_steps

    def nearest(self, patches: Float[Tensor, "*batch dim"]) -> Int[Tensor, "*batch"]:
        """The index of each patch's code."""
        return torch.cdist(patches, self.codes).argmin(dim=-1)

    @torch.no_grad()
    def fit(self, patches: Float[Tensor, "patches dim"]) -> None:
        """Move the codes towards the patches of all workers, each of which calls it with its own.

        Raises:
            ConfigError: the first batch has fewer distinct patches than there are codes.
        """
        if self.num_fits == 0:
            self.codes.copy_(first_codes(gather(patches), len(self.codes)))
        nearest = self.nearest(patches)
        assigned = F.one_hot(nearest, len(self.codes)).to(patches.dtype)
        counts, sums = global_sum(assigned.sum(dim=0)), global_sum(assigned.T @ patches)
        self.weights += counts
        step = (sums - counts[:, None] * self.codes) / self.weights.clamp(min=1)[:, None]
        worst = self._worst(patches, nearest)
        self.codes += step
        self._seed_again((counts == 0).nonzero().flatten(), worst)
        self.num_fits += 1

    def _worst(self, patches: Tensor, nearest: Tensor) -> Float[Tensor, "worst dim"]:
        """The patches of all workers that lie farthest from their codes, farthest first; at most one per code.

        A patch that equals its code is none of them.
        """
        errors = (patches - self.codes[nearest]).square().sum(dim=1)
        mine = errors.argsort(descending=True, stable=True)[: len(self.codes)]
        all_errors, all_patches = gather(errors[mine]), gather(patches[mine])
        order = all_errors.argsort(descending=True, stable=True)[: len(self.codes)]
        return all_patches[order][all_errors[order] > 0]

    def _seed_again(self, empty: Int[Tensor, " empty"], patches: Float[Tensor, "worst dim"]) -> None:
        chosen = empty[: len(patches)]
        self.codes[chosen] = patches[: len(chosen)]
        self.weights[chosen] = 1


def first_codes(patches: Float[Tensor, "patches dim"], num_codes: int) -> Float[Tensor, "codes dim"]:
    """Distinct patches, each drawn in proportion to its squared distance from those drawn before (k-means++).

    Raises:
        ConfigError: there are not so many distinct ones.
    """
    generator = torch.Generator().manual_seed(_SEED)
    chances, chosen = patches.new_ones(len(patches), dtype=torch.float64), []
    distances = torch.full_like(chances, torch.inf)
    for _ in range(num_codes):
        bounds = chances.cumsum(dim=0)
        draw = bounds[-1] * torch.rand((), dtype=torch.float64, generator=generator).to(bounds.device)
        index = torch.searchsorted(bounds, draw, right=True)  # never where the chance is zero
        chosen.append(patches[index])
        distances = torch.minimum(distances, (patches - chosen[-1]).square().sum(dim=1).double())
        chances = distances
        if len(chosen) < num_codes and not chances.any():
            rule = f"is more than the {len(chosen)} distinct patches of the first batch"
            raise ConfigError("num_codes", num_codes, rule)
    return torch.stack(chosen)
