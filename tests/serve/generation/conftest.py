"""A tiny nested decoder with random weights, as a run; steps that a test writes; both sides of a call."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from elastic.lm.checkpoint import LmManifest, save_matlm
from elastic.lm.generate import Finish, Generation, Statistics, Step
from elastic.lm.sampling import Sampling
from elastic.model.decoder import Decoder, DecoderConfig
from elastic.serve.config import ServeConfig
from elastic.serve.generation.choice import TokenSlo
from elastic.serve.generation.engine import Job
from elastic.serve.generation.service import GenerationService
from elastic.submodel import Submodel

CONFIG = DecoderConfig(
    vocab_size=270,
    width=32,
    depth=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    ffn_dims=(8, 16, 32, 64),
    max_tokens=2048,
)
NATS = {"S": 4.0, "M": 3.5, "L": 3.2, "XL": 3.0}
TEXT = "the cat sat on the mat. the dog sat on the log."


def make_tokenizer() -> Tokenizer:
    """Byte-level, like those of MatLM runs: a character beyond ASCII is several tokens."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    found.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator([TEXT], trainer)
    return found


def write_run(run: Path, *, seed: int = 0, eos: tuple[int, ...] = ()) -> Path:
    """A MatLM run whose greedy texts do not repeat one token, with validation losses of its granularities."""
    torch.manual_seed(seed)
    decoder = Decoder(CONFIG).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokenizer = make_tokenizer()
    save_matlm(run, decoder, LmManifest(decoder=CONFIG, eos_token_ids=eos), tokenizer)
    granularities = CONFIG.space.granularities
    rows = [{"submodel": str(submodel), "nats": NATS[name]} for name, submodel in granularities.items()]
    (run / "scores.json").write_text(json.dumps({"submodels": rows}))
    return run


@pytest.fixture(scope="session")
def lm_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("lm") / "tiny_lm")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def service(lm_run: Path) -> GenerationService:
    """One for all tests that leave it as it is."""
    return GenerationService.load(ServeConfig(run=lm_run, max_sequences=4))


def a_job(
    *,
    slo: TokenSlo | None = None,
    max_new_tokens: int = 4,
    draft: Submodel | None = None,
    deadline_ms: float = float("inf"),
    stop: tuple[str, ...] = (),
) -> Job:
    return Job(
        prompt=(1, 2),
        max_new_tokens=max_new_tokens,
        sampling=Sampling(),
        seed=0,
        stop=stop,
        slo=slo or TokenSlo(),
        draft=draft,
        arrived_ms=0.0,
        deadline_ms=deadline_ms,
    )


def a_step(tokens: Sequence[int], finish: Finish | None = None, drafted: int = 0, accepted: int = 0) -> Step:
    return Step(
        tokens=[list(tokens)],
        finished=[finish],
        num_draft_tokens=[drafted],
        num_accepted_tokens=[accepted],
        draft_s=0.0,
        seconds=0.001,
    )


class Written(Generation):
    """Steps, or what is raised in their place, as a test has written them."""

    def __init__(self, results: Sequence[Step | Exception]) -> None:
        self.statistics = Statistics()
        self._written = iter(results)

    def __next__(self) -> Step:
        result = next(self._written)
        if isinstance(result, Exception):
            raise result
        self.statistics.add(result)
        return result
