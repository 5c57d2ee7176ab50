"""What a step changes: weights, averaged weights, optimizer moments, and how many steps were taken."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from elastic.lm.training.config import MatlmConfig
from elastic.lm.training.learner import Learner
from elastic.model.decoder import Decoder
from elastic.model.ema import decay_at, update_average
from elastic.submodel import Submodel
from elastic.train.optim import build_optimizer, set_learning_rates
from elastic.train.parallel import clip_gradients, exchanging, replicate
from elastic.train.seeding import derive_seed


class MatlmState:
    """The state of one worker; equal on all workers after every step."""

    def __init__(self, config: MatlmConfig, device: torch.device) -> None:
        """The state before the first step. Uses the default process group, if there is one, to share gradients."""
        torch.manual_seed(derive_seed(config.seed, "weights"))
        self.config = config
        decoder = Decoder(config.decoder).to(device)
        self.learner = Learner(
            decoder, distillation=config.distillation, precision=config.precision, compile=config.compile
        )
        # Without an average the weights stand for it, so there is one copy.
        self.average = copy.deepcopy(decoder).requires_grad_(False) if config.optim.ema_decay > 0 else decoder
        self._parallel = replicate(self.learner)
        self.optimizer = build_optimizer(self.learner.named_parameters(), config.optim)
        self.step = 0

    def learn(
        self,
        tokens: Int[Tensor, "batch next"],
        submodel: Submodel,
        teacher: Float[Tensor, "batch block vocab"] | None,
        *,
        share: float,
        sync: bool,
    ) -> tuple[Tensor, dict[str, Tensor], Float[Tensor, "batch block vocab"]]:
        """Add `share` of one submodel's gradient; workers exchange what was summed so far at `sync`.

        Returns the loss, its terms and the logits, without gradients.
        """
        with exchanging(self._parallel, sync):
            loss, terms, logits = self._parallel(tokens, submodel, teacher)
            (share * loss).backward()
        return loss.detach(), terms, logits

    def update(self) -> Tensor:
        """Clip, step, average; returns the norm of the gradients before clipping."""
        optim = self.config.optim
        grad_norm = clip_gradients(self.learner.parameters(), optim.max_grad_norm)
        set_learning_rates(self.optimizer, self.step, self.config.steps, optim)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if optim.ema_decay > 0:
            update_average(self.average, self.learner.decoder, decay_at(self.step, optim.ema_decay))
        self.step += 1
        return grad_norm

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on besides the config."""
        return {
            "step": self.step,
            "decoder": self.learner.decoder.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `saved`, the same on all workers."""
        self.step = saved["step"]
        self.learner.decoder.load_state_dict(saved["decoder"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
