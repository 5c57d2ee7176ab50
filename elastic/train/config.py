"""Everything a run depends on, in one frozen value; a recipe is a function that returns it.

Each part is defined beside the code that it configures. What is left here is how the parts fit together, so
that a contradiction is found before anything starts. *Where* a run happens (which cluster, which directory) is
not part of it.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from elastic.data.config import DataConfig
from elastic.errors import ConfigError
from elastic.model.config import EncoderConfig
from elastic.objectives.base import ObjectiveConfig
from elastic.train.balance import Balancing
from elastic.train.masking import MaskConfig
from elastic.train.optim import OptimConfig
from elastic.train.submodels import SubmodelSampling

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training run. Two runs with equal configs have equal losses."""

    name: str
    """Name of the run, and of its directory under runs/."""
    model: EncoderConfig
    """The nested encoder."""
    data: DataConfig
    """The streams of images, and what is done to them."""
    objectives: dict[str, ObjectiveConfig]
    """The terms of the joint loss, by the name they are reported under."""
    steps: int
    """Updates of the weights."""
    submodels: SubmodelSampling = field(default_factory=SubmodelSampling)
    """Which submodels each step trains."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, learning rate and averaged weights."""
    balancing: Balancing | None = None
    """How the streams' weights follow the loss; if left out, they stay as configured."""
    accumulate: int = 1
    """Planned batches that make up one update. Contrastive terms see the negatives of one batch at a time."""
    micro_batches: int = 1
    """Parts that the encoder sees a worker's share of a batch in, to save memory for one more forward pass. Losses and
    gradients stay those of the whole batch, contrastive ones included (GradCache)."""
    masking: MaskConfig = field(default_factory=MaskConfig)
    """What objectives that predict hidden patches hide."""
    teacher: Literal["average", "student"] = "average"
    """Whose encoder makes the targets of self-distillation: the averaged weights' (TIPS, SynCLR), or the student's own,
    so that only the heads are averaged (TIPS v2; needs an image-text objective, or it collapses)."""
    seed: int = 0
    """Decides the weights at the start, the plan of the data, the augmentation and the sampled submodels."""
    num_workers: int = 1
    """Data-parallel training processes. A planned batch is shared out among them."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """What each of several workers keeps: the whole model (ddp), or its part of weights, gradients and moments (fsdp).
    Both train the same weights, and either resumes what the other left."""
    num_threads: int = 0
    """Torch threads of each worker on a CPU; 0 shares out all cores but one, which the data gets."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What each worker computes on. There is no fallback: asking for a GPU where there is none is an error."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the encoder; weights, objectives and averages are always fp32. On a CPU without bf16 instructions
    (AVX512-BF16, AMX) bf16 gives the same results an order of magnitude slower."""
    checkpoint_every: int = 200
    """Updates between checkpoints; the last update always has one."""
    keep_last: int = 2
    """Checkpoints that are kept."""
    log_every: int = 20
    """Updates between records in metrics.jsonl, which are means over them."""
    validate_every: int = 0
    """Updates between measurements of the averaged model on the val split of the first stream's source; 0 is never."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError("name", self.name, "must be a plain directory name of letters, digits, '.', '_' and '-'")
        for name in (
            "steps",
            "accumulate",
            "micro_batches",
            "num_workers",
            "checkpoint_every",
            "keep_last",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1")
        for name in ("seed", "num_threads", "validate_every"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "must not be negative")
        if not self.objectives:
            raise ConfigError("objectives", self.objectives, "needs at least one objective")
        for name in ("checkpoint_every", "validate_every"):
            if getattr(self, name) % self.log_every:
                rule = f"must be a multiple of log_every={self.log_every}"  # so that a resumed run repeats no record
                raise ConfigError(name, getattr(self, name), rule)
        self.submodels.check(self.model.space)
        self._check_objectives()
        self._check_data()
        self._check_balancing()

    def _check_objectives(self) -> None:
        follows = [name for name, objective in self.objectives.items() if "largest" in objective.passes]
        if follows and self.submodels.policy == "sample":
            rule = f"must train the largest at every step for {follows}: all, sandwich or anchored"
            raise ConfigError("submodels.policy", self.submodels.policy, rule)

    def _check_data(self) -> None:
        if self.data.image_size != self.model.vision.image_size:
            rule = f"must equal model.vision.image_size={self.model.vision.image_size}"
            raise ConfigError("data.image_size", self.data.image_size, rule)
        for index, stream in enumerate(self.data.streams):
            crops, patch = stream.local_crops, self.data.image_size // round(self.model.vision.shape.num_patches**0.5)
            if crops is not None and crops.image_size % patch:
                rule = f"must be a multiple of the patch's {patch} pixels"
                raise ConfigError(f"data.streams.{index}.local_crops.image_size", crops.image_size, rule)
            if stream.sampling.num_groups % self.num_workers:
                rule = f"its {stream.sampling.num_groups} groups must divide among {self.num_workers} workers"
                raise ConfigError(f"data.streams.{index}.sampling", stream.sampling, rule)

    def _check_balancing(self) -> None:
        if self.balancing is None:
            return
        term, objective = self.balancing.term, self.objectives.get(self.balancing.objective)
        if objective is None or objective.start > 0:
            raise ConfigError("balancing.term", term, "must be of an objective that counts from the first step on")
        if self.accumulate > 1:
            rule = "must be 1 with balancing: the report of a step is a mean over its batches, whatever their streams"
            raise ConfigError("accumulate", self.accumulate, rule)
        if self.data.order != "shuffled":
            raise ConfigError("data.order", self.data.order, "must be 'shuffled' with balancing, which changes weights")
        if self.balancing.floor * len(self.data.streams) > 1:
            rule = f"must be at most 1/{len(self.data.streams)}, the number of streams"
            raise ConfigError("balancing.floor", self.balancing.floor, rule)

    @property
    def num_batches(self) -> int:
        """Planned batches of the whole run."""
        return self.steps * self.accumulate
