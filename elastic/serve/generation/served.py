"""One MatLM run that answers: weights, tokenizer, what can be chosen, and the model thread."""

import gc
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor

from elastic.errors import CheckpointError
from elastic.lm.checkpoint import load_matlm
from elastic.lm.drafts import DraftConfig
from elastic.lm.generate import Generation, GenerationConfig, Generator
from elastic.model.decoder import Decoder
from elastic.model.hub import TOKENIZER
from elastic.model.storage import WEIGHTS
from elastic.serve.config import ServeConfig
from elastic.serve.generation.engine import Engine, Job
from elastic.serve.generation.front import measured_options, read_nats
from elastic.serve.generation.messages import Reading
from elastic.serve.generation.observer import GenerationObserver
from elastic.serve.resident import weights_version
from elastic.serve.retirable import Retirable
from elastic.serve.rollout.deploy import Candidate
from elastic.serve.rollout.release import Release
from elastic.serve.watchdog import Watchdog
from elastic.submodel import Submodel

CANARY_TOLERANCE = 1e-3
"""Largest difference of a logit between two runs of the same input."""


class Language:
    """A decoder in memory with what turns text into its tokens; not thread-safe, the engine gives it one thread."""

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, eos: tuple[int, ...], version: str) -> None:
        self.decoder, self.tokenizer, self.eos, self.version = decoder, tokenizer, eos, version
        self.generator = Generator(decoder)
        self._canary_answer: Tensor | None = None

    @classmethod
    def load(cls, run: Path, dtype: Literal["float32", "bfloat16"] = "float32", device: str = "cpu") -> "Language":
        """Read a run directory, onto a torch device.

        Raises:
            CheckpointError: no language model there, or a damaged one.
        """
        decoder, manifest, tokenizer = load_matlm(run)
        decoder = decoder.to(device, getattr(torch, dtype)).eval().requires_grad_(False)
        return cls(decoder, tokenizer, tuple(manifest.eos_token_ids), weights_version(run / WEIGHTS))

    def start(self, job: Job, submodel: Submodel) -> Generation:
        """The steps of a job at a submodel; nothing is computed before the first is asked for."""
        config = GenerationConfig(
            max_new_tokens=job.max_new_tokens,
            sampling=job.sampling,
            seed=job.seed,
            eos=self.eos,
            target=submodel,
            draft=DraftConfig(submodel=job.draft) if job.draft is not None and job.drafts_for(submodel) else None,
        )
        return self.generator.generate([job.prompt], config)

    def is_sane(self) -> bool:
        """Whether the smallest submodel still answers a fixed input as it did the first time."""
        answer = self.score(self.decoder.space.smallest)
        if self._canary_answer is None:
            self._canary_answer = answer
        return bool(answer.isfinite().all() and (answer - self._canary_answer).abs().max() < CANARY_TOLERANCE)

    def score(self, submodel: Submodel) -> Tensor:
        """Logits behind a fixed input, `[vocab]` in float32."""
        tokens = torch.arange(min(8, self.decoder.config.vocab_size), device=self.generator.device)[None]
        with torch.inference_mode():
            return self.decoder(tokens, submodel)[0, -1].float()


class ServedDecoder(Retirable):
    """A warm decoder and its model thread."""

    def __init__(self, name: str, language: Language, engine: Engine, reading: Reading) -> None:
        super().__init__(name)
        self.language, self.engine, self.reading = language, engine, reading

    @classmethod
    def load(cls, config: ServeConfig, observer: GenerationObserver) -> "ServedDecoder":
        """Load the run that the settings name, and time every submodel that can be chosen; observers hear of steps.

        Raises:
            CheckpointError: no language model there, or a damaged one.
        """
        language = Language.load(config.run, config.dtype, config.device)
        options = measured_options(language.generator, read_nats(config.run))
        language.is_sane()  # what the canary answers
        # Recording leaves cycles that hold the weights, and a replica exempts what it started with from collection.
        gc.collect()
        engine = Engine(
            options,
            language.start,
            max_sequences=config.max_sequences,
            watchdog=Watchdog(floor_s=config.stuck_after_s),
            on_step=observer.step_ran,
        )
        sizes = language.decoder.config
        reading = Reading(
            language.tokenizer, sizes.space, sizes.vocab_size, sizes.max_tokens, max_text_chars=config.max_text_chars
        )
        return cls(config.run.resolve().name, language, engine, reading)

    @property
    def version(self) -> str:
        """Identity of the weights."""
        return self.language.version

    @property
    def is_stuck(self) -> bool:
        """Whether a step has run for longer than can be."""
        return self.engine.watchdog.is_stuck

    def abandon(self, error: BaseException) -> None:
        """Let every sequence that runs fail."""
        self.engine.abandon(error)

    async def canary(self) -> bool:
        """Whether the model still answers a fixed input correctly, in its own thread."""
        return await self.engine.run_in_model_thread(self.language.is_sane)

    def close(self) -> None:
        """Stop computing."""
        self.engine.close()


def try_out_decoder(release: Release, config: ServeConfig) -> Candidate:
    """Load a release as a replica would, and score a text with its smallest and largest submodel.

    Raises:
        CheckpointError: no language model, a damaged one, or it answers with values that are not finite.
    """
    language = Language.load(release.run, config.dtype, config.device)
    read_nats(release.run)
    space = language.decoder.space
    for submodel in (space.smallest, space.full):
        if not language.score(submodel).isfinite().all():
            problem = f"{space.name(submodel)} scores a fixed text with values that are not finite"
            raise CheckpointError(str(release.run), problem, "train the model again")
    vocabulary = weights_version(release.run / TOKENIZER)
    offers = (*(f"granularity {name}" for name in space.granularities), f"tokenizer {vocabulary}")
    return Candidate(release, language.version, offers)
