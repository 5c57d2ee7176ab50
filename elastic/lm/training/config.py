"""Everything a MatLM run depends on, in one frozen value; a recipe is a function that returns it."""

import re
from dataclasses import dataclass, field
from typing import Literal

from elastic.errors import ConfigError
from elastic.lm.text.config import TextConfig
from elastic.model.decoder import DecoderConfig
from elastic.train.optim import OptimConfig
from elastic.train.submodels import SubmodelSampling

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class MatlmConfig:
    """One training run of a nested decoder. Two runs with equal configs have equal losses."""

    name: str
    """Name of the run, and of its directory under runs/."""
    decoder: DecoderConfig
    """The nested decoder."""
    text: TextConfig
    """What it reads, in which tokens, and how much of it a step."""
    steps: int
    """Updates of the weights."""
    submodels: SubmodelSampling = field(default_factory=SubmodelSampling)
    """Which submodels each step trains, all on the same tokens."""
    distillation: float = 0.0
    """Share of the loss of smaller submodels that is the KL divergence from the largest's prediction, which is not
    trained by it; the rest is the cross-entropy of the text. Above 0, every step must train the largest."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(weight_decay=0.1, betas=(0.9, 0.95), ema_decay=0.0))
    """Optimizer, learning rate and averaged weights; with `ema_decay` 0 the last weights are delivered."""
    seed: int = 0
    """Decides the weights at the start, the order of the text and the sampled submodels."""
    num_workers: int = 1
    """Data-parallel training processes, each a whole copy of the model (DDP). They share out the blocks of a batch."""
    num_threads: int = 0
    """Torch threads of each worker on a CPU; 0 shares out all cores."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What each worker computes on. There is no fallback: asking for a GPU where there is none is an error."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the decoder; weights and losses are always fp32. Without bf16 instructions bf16 is slow."""
    compile: bool = False
    """Whether each granularity's training pass is compiled (torch.compile). Takes a minute, pays on a GPU."""
    checkpoint_every: int = 200
    """Updates between checkpoints; the last update always has one."""
    keep_last: int = 2
    """Checkpoints that are kept."""
    log_every: int = 20
    """Updates between records in metrics.jsonl, which are means over them."""
    validate_every: int = 0
    """Updates between measurements of the averaged weights on held-out text; 0 is only at the end."""
    validation_blocks: int = 64
    """Blocks of held-out text that these read, always the same."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError("name", self.name, "must be a plain directory name of letters, digits, '.', '_' and '-'")
        for name in ("steps", "num_workers", "checkpoint_every", "keep_last", "log_every", "validation_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1")
        for name in ("seed", "num_threads", "validate_every"):
            if getattr(self, name) < 0:
                raise ConfigError(name, getattr(self, name), "must not be negative")
        for name in ("checkpoint_every", "validate_every"):
            if getattr(self, name) % self.log_every:
                rule = f"must be a multiple of log_every={self.log_every}"  # so that a resumed run repeats no record
                raise ConfigError(name, getattr(self, name), rule)
        if self.optim.encoder_rate != 1 or self.optim.freeze_encoder != 0:
            raise ConfigError("optim.encoder_rate", self.optim.encoder_rate, "is for image towers; a decoder has none")
        self.submodels.check(self.decoder.space)
        self._check_distillation()
        self._check_text()

    def _check_distillation(self) -> None:
        if not 0 <= self.distillation <= 1:
            raise ConfigError("distillation", self.distillation, "must be between 0 and 1")
        if self.distillation > 0 and self.submodels.policy == "sample":
            rule = "must train the largest at every step to distil from it: all, sandwich or anchored"
            raise ConfigError("submodels.policy", self.submodels.policy, rule)

    def _check_text(self) -> None:
        if self.text.tokenizer is None and self.text.vocab_size != self.decoder.vocab_size:
            rule = f"must equal text.vocab_size={self.text.vocab_size}"
            raise ConfigError("decoder.vocab_size", self.decoder.vocab_size, rule)
        if self.text.block_size > self.decoder.max_tokens:
            rule = f"must be at most decoder.max_tokens={self.decoder.max_tokens}"
            raise ConfigError("text.block_size", self.text.block_size, rule)
        if self.text.batch_size % self.num_workers:
            rule = f"must divide among {self.num_workers} workers"
            raise ConfigError("text.batch_size", self.text.batch_size, rule)
