"""Text, token by token: what is asked for, what comes at each step, and what was counted on the way.

    generator = Generator(decoder)
    generation = generator.generate(prompts, GenerationConfig(max_new_tokens=64, draft=DraftConfig(submodel="S")))
    for step in generation:
        print(step.tokens)  # the new tokens of every sequence
    print(generation.statistics.acceptance_rate)

Plain decoding is the case without a draft. The names of the counters and their formulas are vLLM's.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from elastic.errors import ConfigError, InvalidRequest
from elastic.lm.drafts import Draft, DraftConfig
from elastic.lm.gamma import MAX_GAMMA, AdaptiveGamma, FixedGamma, GammaPolicy
from elastic.lm.sampling import Chances, Sampling
from elastic.lm.speculative import Rounds
from elastic.model.cache import KvCache
from elastic.model.decoder import Decoder
from elastic.model.reader import Reader
from elastic.submodel import Submodel

Finish = Literal["eos", "length", "stopped"]
"""Why a sequence ended: its end token, its number of tokens, or `Generation.stop`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationConfig:
    """How sequences are continued."""

    max_new_tokens: int = 128
    """Tokens after which a sequence ends."""
    sampling: Sampling = Sampling()
    """How tokens are chosen: greedy if left out."""
    seed: int = 0
    """With the sequence's row, of the random numbers it is sampled with."""
    eos: int | None = None
    """The token that ends a sequence; it is given out."""
    target: Submodel | None = None
    """Whose distribution the tokens have; the full model if left out."""
    draft: DraftConfig | None = None
    """What proposes tokens; nothing if left out: plain decoding."""
    gamma: int | Literal["auto"] = "auto"
    """Tokens that are drafted at a time. `auto`: what is fastest by what is measured, nothing if drafts do not pay."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError("max_new_tokens", self.max_new_tokens, "must be at least 1")
        if self.gamma != "auto" and not 0 <= self.gamma <= MAX_GAMMA:
            raise ConfigError("gamma", self.gamma, f"must be 'auto' or from 0 to {MAX_GAMMA}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one round brought; rows in the order of the prompts, empty for sequences that had ended before."""

    tokens: list[list[int]]
    """New tokens, at least one of every sequence that goes on."""
    finished: list[Finish | None]
    """Why each sequence has ended, now or before; `None` while it goes on."""
    num_draft_tokens: list[int]
    """Tokens that were drafted for each sequence in this round."""
    num_accepted_tokens: list[int]
    """Of these, how many the target accepted, tokens behind the sequence's end among them."""


@dataclass(kw_only=True, slots=True)
class Statistics:
    """Counts of one or several generations."""

    num_tokens: int = 0
    """Given out."""
    num_drafts: int = 0
    """Rounds of a sequence in which something was drafted."""
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_tokens_per_position: list[int] = field(default_factory=lambda: [0] * MAX_GAMMA)
    """How often the first, second, ... token of a draft was accepted."""
    seconds: float = 0.0
    """From the first prompt token to the last new one."""

    @property
    def acceptance_rate(self) -> float:
        """Accepted tokens / draft tokens; 0 without drafts."""
        return self.num_accepted_tokens / max(1, self.num_draft_tokens)

    @property
    def mean_acceptance_length(self) -> float:
        """Tokens that a drafted round brings: 1 + accepted tokens / drafts."""
        return 1 + self.num_accepted_tokens / max(1, self.num_drafts)

    @property
    def tokens_per_s(self) -> float:
        """Tokens given out / seconds."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    def add(self, step: Step) -> None:
        """Count one step."""
        self.num_tokens += sum(map(len, step.tokens))
        for drafted, accepted in zip(step.num_draft_tokens, step.num_accepted_tokens, strict=True):
            self.num_drafts += drafted > 0
            self.num_draft_tokens += drafted
            self.num_accepted_tokens += accepted
            for position in range(accepted):
                self.num_accepted_tokens_per_position[position] += 1
