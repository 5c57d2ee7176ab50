"""Text, token by token: what is asked for, what comes at each step, and what was counted on the way.

    generator = Generator(decoder)
    generation = generator.generate(prompts, config)
    for step in generation:
        print(step.tokens)  # the new tokens of every sequence
    print(generation.statistics.acceptance_rate)

Plain decoding is the case without a draft. The names of the counters and their formulas are vLLM's.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from elastic.errors import ConfigError, InvalidRequest
from elastic.lm.drafts import Draft, DraftConfig, read_prompts
from elastic.lm.gamma import MAX_GAMMA, AdaptiveGamma, FixedGamma, GammaPolicy
from elastic.lm.sampling import Chances, Sampling
from elastic.lm.speculative import Round, Rounds
from elastic.model.decoder import Decoder
from elastic.model.reader import Reader
from elastic.submodel import Submodel

GREEDY = Sampling()
"""The most probable token, always."""

Finish = Literal["eos", "length", "stopped"]
"""Why a sequence ended: its end token, its number of tokens, or `Generation.stop`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationConfig:
    """How sequences are continued."""

    max_new_tokens: int = 128
    """Tokens after which a sequence ends."""
    sampling: Sampling = GREEDY
    """How tokens are chosen: greedy if left out."""
    seed: int = 0
    """Of the random numbers that tokens are sampled with; every sequence of a batch has its own, so that what it draws
    at a given `gamma` does not depend on who is beside it."""
    eos: tuple[int, ...] = ()
    """Tokens that end a sequence; they are given out."""
    target: Submodel | None = None
    """Whose distribution the tokens have; the full model if left out."""
    draft: DraftConfig | Draft | None = None
    """What proposes tokens: made of the decoder's own weights, or made already; nothing if left out: plain decoding."""
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
    draft_s: float
    """Time spent on drafting in this round."""
    seconds: float
    """Time of the whole round; of the first, reading the prompts included."""
    verify_s: float = 0.0
    """Time of the target's pass and what follows from it."""


@dataclass(kw_only=True, slots=True)
class Statistics:
    """Counts of one or several generations."""

    num_tokens: int = 0
    """Given out."""
    num_drafts: int = 0
    """Rounds of a sequence in which something was drafted."""
    num_draft_tokens: int = 0
    """Tokens of all drafts."""
    num_accepted_tokens: int = 0
    """Of these, the accepted ones."""
    num_accepted_tokens_per_position: list[int] = field(default_factory=lambda: [0] * MAX_GAMMA)
    """How often the first, second, ... token of a draft was accepted."""
    seconds: float = 0.0
    """Time of all rounds, reading the prompts included; what was done between them is not."""

    num_verifications: int = 0
    """Rounds of a batch in which something was drafted."""
    num_draft_steps: int = 0
    """Passes of the draft in them."""
    draft_s: float = 0.0
    """Time of these passes."""
    verify_s: float = 0.0
    """Time of the target's passes in these rounds."""

    @property
    def draft_cost(self) -> float:
        """Time of a draft's pass in passes of the target over a whole draft; 0 without drafts."""
        if not self.num_verifications or not self.verify_s:
            return 0.0
        return (self.draft_s / self.num_draft_steps) / (self.verify_s / self.num_verifications)

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
        self.seconds += step.seconds
        if any(step.num_draft_tokens):
            self.num_verifications += 1
            self.num_draft_steps += max(step.num_draft_tokens)
            self.draft_s += step.draft_s
            self.verify_s += step.verify_s
        for drafted, accepted in zip(step.num_draft_tokens, step.num_accepted_tokens, strict=True):
            self.num_drafts += drafted > 0
            self.num_draft_tokens += drafted
            self.num_accepted_tokens += accepted
            for position in range(accepted):
                self.num_accepted_tokens_per_position[position] += 1


class Generator:
    """Continues prompts with a decoder. Keeps what is worth keeping between calls: recordings and measured times."""

    def __init__(self, decoder: Decoder, clock: Callable[[], float] = time.perf_counter) -> None:
        self.decoder, self.clock = decoder, clock
        self._targets: dict[Submodel, Reader] = {}
        self._drafts: dict[tuple[Submodel, DraftConfig], Draft] = {}
        self._policies: dict[tuple[Submodel, DraftConfig | Draft, bool, int], AdaptiveGamma] = {}

    def generate(
        self, prompts: Sequence[Sequence[int]], config: GenerationConfig, seeds: Sequence[int] | None = None
    ) -> "Generation":
        """The steps of one batch; nothing is computed before the first is asked for.

        Args:
            prompts: Tokens to continue, at least one each; they may differ in length.
            config: How.
            seeds: One for each prompt, instead of those that follow from the configuration's.

        Raises:
            InvalidRequest: a prompt is empty, holds tokens that do not exist, or leaves too little room; or a submodel
                is not one of the decoder's.
            ConfigError: the draft has blocks or tokens that the decoder has not.
        """
        self._check(prompts, config)
        drawn = np.random.SeedSequence(config.seed).generate_state(len(prompts), np.uint64)
        return Generation(self, prompts, config, drawn.tolist() if seeds is None else seeds)

    @property
    def device(self) -> torch.device:
        """Where the decoder is."""
        return self.decoder.model.embed_tokens.weight.device

    def target(self, config: GenerationConfig) -> Reader:
        """What verifies, or decodes alone."""
        submodel = self.target_of(config)
        if submodel not in self._targets:
            self._targets[submodel] = Reader(self.decoder, submodel)
        return self._targets[submodel]

    def draft(self, config: GenerationConfig) -> Draft | None:
        """What proposes."""
        if not isinstance(config.draft, DraftConfig):
            return config.draft
        key = (self.target_of(config), config.draft)
        if key not in self._drafts:
            self._drafts[key] = config.draft.build(self.decoder, key[0])
        return self._drafts[key]

    def policy(self, config: GenerationConfig, batch: int) -> GammaPolicy:
        """What decides how much is drafted: what it has learned of such batches stays."""
        if config.draft is None:
            return FixedGamma(0)
        if config.gamma != "auto":
            return FixedGamma(config.gamma)
        key = (self.target_of(config), config.draft, config.sampling.is_greedy, batch)
        return self._policies.setdefault(key, AdaptiveGamma())

    def target_of(self, config: GenerationConfig) -> Submodel:
        """Whose distribution is kept."""
        return self.decoder.space.full if config.target is None else config.target

    def _check(self, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> None:
        self.decoder.space.check(self.target_of(config))
        if isinstance(config.draft, DraftConfig):
            config.draft.check(self.decoder)
        if not prompts:
            raise InvalidRequest("prompts", "none were given")
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise InvalidRequest(f"prompts[{row}]", "holds no token; begin with one, if only that of a beginning")
            if min(prompt) < 0 or max(prompt) >= self.decoder.config.vocab_size:
                problem = f"holds tokens outside the vocabulary of {self.decoder.config.vocab_size}"
                raise InvalidRequest(f"prompts[{row}]", problem)
            if len(prompt) + config.max_new_tokens > self.decoder.config.max_tokens:
                problem = f"{len(prompt)} tokens and {config.max_new_tokens} new ones are more than"
                raise InvalidRequest(f"prompts[{row}]", f"{problem} the model's {self.decoder.config.max_tokens}")


class Generation(Iterator[Step]):
    """One batch of sequences on its way; iterate over it for its steps."""

    def __init__(
        self,
        generator: Generator,
        prompts: Sequence[Sequence[int]],
        config: GenerationConfig,
        seeds: Sequence[int],
    ) -> None:
        self.statistics = Statistics()
        """Of the steps so far."""
        self._generator, self._config = generator, config
        self._prompts, self._seeds = prompts, seeds
        self._remaining = [config.max_new_tokens] * len(prompts)
        self._finished: list[Finish | None] = [None] * len(prompts)
        self._active = list(range(len(prompts)))
        self._rounds: Rounds | None = None
        self._policy = generator.policy(config, len(prompts))

    def __next__(self) -> Step:
        """Run one round; ends when all sequences have."""
        active = [row for row in self._active if self._finished[row] is None]
        if not active:
            raise StopIteration
        begin_s = self._generator.clock()
        with torch.inference_mode():
            if self._rounds is None:
                self._rounds = self._read_prompts()
            if len(active) < len(self._active):
                self._rounds.keep([self._active.index(row) for row in active])
                self._policy = self._generator.policy(self._config, len(active))
            self._active = active
            most = [self._remaining[row] - 1 for row in active]
            gamma = min(self._policy.choose(), max(most))
            round_begin_s = self._generator.clock()
            found = self._rounds.run(gamma, most)
        end_s = self._generator.clock()
        round_s = end_s - round_begin_s
        judged = [count for count, limit in zip(found.num_accepted, most, strict=True) if limit >= gamma]
        self._policy.observe(gamma, judged, round_s)
        step = self._step(gamma, found, seconds=end_s - begin_s, verify_s=round_s - found.draft_s)
        self.statistics.add(step)
        return step

    def stop(self, row: int) -> None:
        """End one sequence here: its reader has seen enough."""
        if self._finished[row] is None:
            self._finished[row] = "stopped"

    def _read_prompts(self) -> Rounds:
        """Read all but the last token of each prompt, which is the first that a round reads."""
        generator, config = self._generator, self._config
        target, draft, device = generator.target(config), generator.draft(config), generator.device
        longest = max(map(len, self._prompts))
        spare = self._policy.limit if len(self._prompts) > 1 else 0
        cache = generator.decoder.new_cache(len(self._prompts), longest - 1 + config.max_new_tokens + spare)
        # Shorter rows are filled up behind their end. What that writes is cut off again and never read.
        rows = [[*prompt[:-1], *[0] * (longest - len(prompt))] for prompt in self._prompts]
        lengths = [len(prompt) - 1 for prompt in self._prompts]
        tokens = torch.tensor(rows, dtype=torch.int64, device=device).reshape(len(rows), longest - 1)
        read_prompts(generator.decoder, generator.target_of(config), tokens, lengths, cache)
        if draft is not None:
            draft = draft.start(tokens, lengths, cache.num_slots)
        pending = torch.tensor([[prompt[-1]] for prompt in self._prompts], device=device)
        chances = Chances(self._seeds, device)
        return Rounds(target, draft, cache, pending, config.sampling, chances, generator.clock)

    def _step(self, gamma: int, found: Round, *, seconds: float, verify_s: float) -> Step:
        """Cut what came at the sequences' ends."""
        count = len(self._prompts)
        new: list[list[int]] = [[] for _ in range(count)]
        drafted, accepted = [0] * count, [0] * count
        for row, tokens, num_accepted in zip(self._active, found.tokens, found.num_accepted, strict=True):
            drafted[row], accepted[row] = min(gamma, self._remaining[row] - 1), num_accepted
            new[row], self._finished[row] = _cut(tokens, self._config.eos, self._remaining[row])
            self._remaining[row] -= len(new[row])
        return Step(
            tokens=new,
            finished=list(self._finished),
            num_draft_tokens=drafted,
            num_accepted_tokens=accepted,
            draft_s=found.draft_s,
            seconds=seconds,
            verify_s=verify_s,
        )


def _cut(tokens: Sequence[int], eos: Sequence[int], remaining: int) -> tuple[list[int], Finish | None]:
    """Tokens up to the end of their sequence, and what ended it."""
    kept = list(tokens[:remaining])
    for place, token in enumerate(kept):
        if token in eos:
            return kept[: place + 1], "eos"
    return kept, "length" if len(kept) == remaining else None
