"""What a step changes: weights, averaged weights, optimizer moments, and how many steps were taken."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from elastic.batch import Batch, Features
from elastic.model.ema import decay_at, update_average
from elastic.model.encoder import Encoder
from elastic.model.pretrained import build_encoder
from elastic.objectives.base import Dimensions, Terms
from elastic.objectives.joint import JointObjective
from elastic.submodel import Space, Submodel
from elastic.train.cached import gradients, join, split
from elastic.train.config import TrainConfig
from elastic.train.learner import Given, Learner
from elastic.train.masking import draw_masks
from elastic.train.optim import build_optimizer, set_learning_rates
from elastic.train.parallel import (
    clip_gradients,
    exchanging,
    load_whole_optimizer_state,
    load_whole_state,
    share,
    whole_encoder,
    whole_optimizer_state,
    whole_state,
)
from elastic.train.seeding import derive_seed
from elastic.train.window import num_workers, rank


class TrainState:
    """The state of one worker; equal on all workers after every step."""

    def __init__(self, config: TrainConfig, dims: Dimensions, device: torch.device) -> None:
        """The state before the first step. Uses the default process group, if there is one, to share gradients."""
        torch.manual_seed(derive_seed(config.seed, "weights"))
        encoder = build_encoder(config.model)
        objective = JointObjective(config.objectives, dims)
        self.config = config
        self.space: Space = encoder.space
        self.learner = Learner(encoder, objective, config.precision).to(device)
        self.average = Encoder(config.model).to(device).eval().requires_grad_(False)
        self.average.load_state_dict(encoder.state_dict())
        self._parallel = share(self.learner, self.average, config.parallel, device)
        self.optimizer = build_optimizer(self.learner.named_parameters(), config.optim)
        self.step = 0

    def prepare(self, batch: Batch, number: int, submodels: Sequence[Submodel]) -> tuple[Batch, Given]:
        """The step's `number`-th batch with what its masked pass hides, and what is settled before its passes."""
        progress = self.step / self.config.steps
        wanted = self.learner.objective.passes(batch.present, progress)
        if "masked" in wanted:
            batch = self._hide(batch, number)
        teacher = self._teach(batch, submodels) if "teacher" in wanted else None
        return batch, Given(wanted=wanted, progress=progress, teacher=teacher)

    def _hide(self, batch: Batch, number: int) -> Batch:
        # Drawn for the whole batch, so that an image's mask does not depend on the number of workers.
        size, num_patches = len(batch.images), self.config.model.vision.shape.num_patches
        seed = derive_seed(self.config.seed, "masks", self.step, number)
        masks = draw_masks(self.config.masking, size * num_workers(), num_patches, seed)
        return replace(batch, mask=masks[rank() * size : (rank() + 1) * size].to(batch.images.device))

    def _teach(self, batch: Batch, submodels: Sequence[Submodel]) -> Features | None:
        """What the teacher sees in whole images, at the full submodel.

        `None` where the student teaches itself (TIPS v2) and is computed at the full submodel anyway.
        """
        config = self.config
        batch = replace(batch, captions=None, synthetic_captions=None)
        if config.teacher == "average":
            with torch.no_grad():
                return self.learner.encode(self.average, batch, self.space.full)
        if tuple(submodels) == (self.space.full,) and config.model.vision.drop_path == 0 and config.micro_batches == 1:
            return None
        return self.learner.observe(batch, self.space.full)

    def learn(
        self, batch: Batch, submodel: Submodel, given: Given, *, share: float, sync: bool
    ) -> tuple[Tensor, Terms, Features]:
        """Add `share` of one loss's gradient; workers exchange what was summed so far at `sync`.

        Returns the loss, its terms and the features of the clean pass, without gradients.
        """
        if self.config.micro_batches > 1:
            return self._learn_in_parts(batch, submodel, given, share=share, sync=sync)
        with exchanging(self._parallel, sync):
            loss, terms, features = self._parallel(batch, submodel, given)
            (share * loss).backward()
        return loss.detach(), terms, features

    def _learn_in_parts(
        self, batch: Batch, submodel: Submodel, given: Given, *, share: float, sync: bool
    ) -> tuple[Tensor, Terms, Features]:
        """The same with the activations of one part at a time; see `cached`."""
        parts, seed = split(batch, self.config.micro_batches), torch.initial_seed()
        seen = []
        for number, part in enumerate(parts):
            torch.manual_seed(seed + number)  # so that the second look drops the same paths
            seen.append(self.learner.look(part, submodel, given))
        joined, leaves = join(seen)
        passes = replace(joined, teacher=given.teacher)
        loss, terms = self.learner.objective(passes, batch)
        (share * loss).backward()
        for number, (part, pull) in enumerate(zip(parts, gradients(leaves, seen), strict=True)):
            torch.manual_seed(seed + number)
            with exchanging(self._parallel, sync and number == len(parts) - 1):
                carried, _, _ = self._parallel(part, submodel, given, pull)
                carried.backward()
        return loss.detach(), terms, passes.clean.detach()

    def update(self) -> Tensor:
        """Clip, step, average; returns the norm of the gradients before clipping."""
        optim = self.config.optim
        grad_norm = clip_gradients(self.learner.parameters(), optim.max_grad_norm)
        set_learning_rates(self.optimizer, self.step, self.config.steps, optim)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        decay = decay_at(self.step, optim.ema_decay)
        update_average(self.average, self.learner.encoder, decay)
        self.learner.objective.after_step(decay)
        self.step += 1
        return grad_norm

    def whole_average(self) -> Encoder:
        """The averaged encoder, for the worker of rank 0 to use; every worker calls this together."""
        return whole_encoder(self.average)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on besides the config, for the worker of rank 0 to save.

        Every worker calls this together. Nothing in it depends on how the workers share the model.
        """
        return {
            "step": self.step,
            "learner": whole_state(self.learner),
            "average": whole_state(self.average),
            "optimizer": whole_optimizer_state(self.optimizer),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `saved`, the same on all workers."""
        self.step = saved["step"]
        load_whole_state(self.learner, saved["learner"])
        load_whole_state(self.average, saved["average"])
        load_whole_optimizer_state(self.optimizer, saved["optimizer"])
