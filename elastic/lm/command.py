"""The verb `elastic generate`: continue a prompt in the terminal, drafted by a smaller slice of the same weights."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Literal

import torch
import tyro
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from elastic.errors import DataError, InvalidRequest
from elastic.lm.checkpoint import load_matlm
from elastic.lm.drafts import DraftConfig, most_frequent
from elastic.lm.generate import GenerationConfig, Generator, Statistics
from elastic.lm.sampling import Sampling
from elastic.submodel import Space

COMPARED_ROUNDS = 3
"""Generations of each kind whose median speed `--compare` takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generate:
    """Continue a prompt with a language model, token by token as they come.

    A smaller submodel drafts some tokens, the target checks them in one pass: the text is the target's own, only
    sooner. Ends with a line on what the drafts brought.

    Example: elastic generate runs/matlm --prompt "The history of" --temperature 0.8 --compare
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run")]
    """Directory of a finished run of a language model."""
    prompt: str | None = None
    """Text to continue."""
    prompt_file: Path | None = None
    """File with the text to continue."""
    target: str | None = None
    """Submodel whose text it is: a granularity or ffn=...; by default the full model."""
    draft: str | None = None
    """Submodel that drafts, or `off`; by default the smallest granularity."""
    draft_layers: tuple[int, ...] | None = None
    """Blocks that the draft runs, such as 0 1 5; by default all."""
    draft_vocabulary_text: Path | None = None
    """File of text like the one to come: the draft proposes only the tokens that are most frequent there."""
    draft_vocabulary: int = 512
    """How many of those tokens."""
    gamma: int | Literal["auto"] = "auto"
    """Tokens drafted at a time; `auto`: as many as pay on this machine."""
    max_new_tokens: int = 128
    """Tokens after which the text ends."""
    temperature: float = 0.0
    """Above 0: draw tokens, the more freely the higher; 0: always the most probable one."""
    top_k: int = 0
    """Draw only from so many most probable tokens; 0: from all."""
    top_p: float = 1.0
    """Draw only from the most probable tokens that together have this probability."""
    seed: int = 0
    """Of what is drawn."""
    compare: bool = False
    """Generate once more without drafts and say how much faster it was with them."""
    num_threads: int | None = None
    """Threads of torch; by default its own choice."""
    device: str = "cpu"
    """Where it runs."""

    def run(self) -> None:
        """Print the prompt, its continuation, and what was counted."""
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        decoder, manifest, tokenizer = load_matlm(self.run_dir)
        generator = Generator(decoder.to(self.device).requires_grad_(False))
        text = self._text()
        prompt = tokenizer.encode(text).ids or list(manifest.eos_token_ids[:1])  # a text begins where one has ended
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            sampling=Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p),
            seed=self.seed,
            eos=manifest.eos_token_ids,
            target=None if self.target is None else decoder.space.parse(self.target),
            draft=self._draft(decoder.space, tokenizer),
            gamma=self.gamma,
        )
        print(text, end="", flush=True)
        generation = generator.generate([prompt], config)
        decode = DecodeStream(skip_special_tokens=True)  # holds back a character until its last byte has come
        for step in generation:
            for token in step.tokens[0]:
                print(decode.step(tokenizer, token) or "", end="", flush=True)
        print()
        print(summary(generation.statistics), file=sys.stderr)
        if self.compare and config.draft is not None:
            print(f"{compare(generator, prompt, config):.2f} times as fast as without drafts", file=sys.stderr)

    def _text(self) -> str:
        if self.prompt is not None and self.prompt_file is None:
            return self.prompt
        if self.prompt is None and self.prompt_file is not None:
            return _read(self.prompt_file)
        raise InvalidRequest("prompt", "give one of --prompt and --prompt-file")

    def _draft(self, space: Space, tokenizer: Tokenizer) -> DraftConfig | None:
        if self.draft == "off":
            return None
        vocabulary = None
        if self.draft_vocabulary_text is not None:
            counted = tokenizer.encode(_read(self.draft_vocabulary_text)).ids
            vocabulary = most_frequent(counted, self.draft_vocabulary)
        submodel = space.smallest if self.draft is None else space.parse(self.draft)
        return DraftConfig(submodel=submodel, layers=self.draft_layers, vocabulary=vocabulary)


def summary(counts: Statistics) -> str:
    """One line on what a generation took and what its drafts were worth."""
    speed = f"{counts.num_tokens} tokens, {counts.tokens_per_s:.0f} tokens/s"
    if not counts.num_draft_tokens:
        return f"{speed}, nothing drafted"
    accepted = f"accepted {counts.num_accepted_tokens} of {counts.num_draft_tokens} drafted"
    return f"{speed}, {accepted} ({counts.acceptance_rate:.0%}), {counts.mean_acceptance_length:.2f} tokens per draft"


def compare(generator: Generator, prompt: Sequence[int], config: GenerationConfig) -> float:
    """Tokens per second over those of plain decoding, both warm, in turn."""
    speeds: list[list[float]] = [[], []]
    for _ in range(1 + COMPARED_ROUNDS):
        for taken, draft in zip(speeds, (None, config.draft), strict=True):
            generation = generator.generate([prompt], replace(config, draft=draft))
            for _ in generation:
                pass
            taken.append(generation.statistics.tokens_per_s)
    plain, drafted = (median(taken[1:]) for taken in speeds)  # the first is to warm up
    return drafted / plain


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"cannot be read as text ({error})", "give a readable UTF-8 file") from error
