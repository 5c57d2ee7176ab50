"""What a step changes: weights, averaged weights, optimizer moments, and how many steps were taken.

`Learner` holds the encoder and its objectives in one module, because the objectives have parameters too (class
prototypes, temperatures) and data parallelism must see all of them in one forward pass.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elastic.batch import Batch, Features
from elastic.model.encoder import Encoder
from elastic.model.pretrained import build_encoder
from elastic.objectives.base import Dimensions, Terms
from elastic.objectives.joint import JointObjective
from elastic.submodel import Space, Submodel
from elastic.train.config import TrainConfig
from elastic.train.ema import decay_at, update_average
from elastic.train.optim import build_optimizer, learning_rate_at
from elastic.train.seeding import derive_seed


class Learner(nn.Module):
    """A batch and a submodel in, the joint loss and its named terms out."""

    def __init__(self, encoder: Encoder, objective: JointObjective, precision: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        self._precision = precision

    def forward(self, batch: Batch, submodel: Submodel, teacher: Features | None) -> tuple[Tensor, Terms]:
        """The encoder runs in the configured precision, the objective always in fp32."""
        features = self.encode(self.encoder, batch, submodel)
        return self.objective(features, batch, teacher)

    def encode(self, encoder: Encoder, batch: Batch, submodel: Submodel) -> Features:
        """Features in fp32, whatever the precision they were computed in."""
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            features = encoder(batch, submodel)
        values = ((f.name, getattr(features, f.name)) for f in fields(features))
        return replace(features, **{name: value.float() for name, value in values if value is not None})


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
        self.optimizer = build_optimizer(self.learner.named_parameters(), config.optim)
        self.step = 0
        self._parallel = _share_gradients(self.learner)

    def teach(self, batch: Batch) -> Features | None:
        """The averaged encoder's features at the full submodel, if an objective asks for a teacher."""
        if not self.learner.objective.needs_teacher:
            return None
        with torch.no_grad():
            return self.learner.encode(self.average, batch, self.space.full)

    @contextmanager
    def backward(self, *, sync: bool) -> Iterator[nn.Module]:
        """The learner, for one forward and backward pass; workers share the gradients summed so far at `sync`."""
        hold: AbstractContextManager[None] = nullcontext()
        if isinstance(self._parallel, DistributedDataParallel) and not sync:
            hold = self._parallel.no_sync()
        with hold:
            yield self._parallel

    def update(self) -> Tensor:
        """Clip, step, average; returns the norm of the gradients before clipping."""
        optim = self.config.optim
        grad_norm = nn.utils.clip_grad_norm_(self.learner.parameters(), optim.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.config.steps, optim)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        update_average(self.average, self.learner.encoder, decay_at(self.step, optim.ema_decay))
        self.step += 1
        return grad_norm

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on besides the config."""
        return {
            "step": self.step,
            "learner": self.learner.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from `saved`."""
        self.step = saved["step"]
        self.learner.load_state_dict(saved["learner"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])


def _share_gradients(learner: Learner) -> nn.Module:
    """The learner under DDP when there are several workers.

    Looking for unused parameters lets a step skip objectives that its stream does not feed. It also keeps DDP from
    rearranging its buckets after the first step, which would change the order of sums and so make a resumed run
    of three or more workers differ in the last bit.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return learner
    return DistributedDataParallel(learner, find_unused_parameters=True)
