import asyncio
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from elastic.errors import CheckpointError
from elastic.model.storage import WEIGHTS
from elastic.serve.config import ServeConfig
from elastic.serve.generation.observer import GenerationObserver
from elastic.serve.generation.served import Language, ServedDecoder, try_out_decoder
from elastic.serve.resident import weights_version
from elastic.serve.rollout.deploy import check_not_narrower
from elastic.serve.rollout.release import Release, Releases
from tests.serve.generation.conftest import CONFIG, write_run


@pytest.fixture
def spoilt(lm_run: Path, tmp_path: Path) -> Path:
    """A run whose head has become infinite."""
    run = Path(shutil.copytree(lm_run, tmp_path / "spoilt"))
    weights = safetensors.torch.load_file(run / WEIGHTS)
    name = next(name for name in weights if "embed_tokens" in name)
    weights[name] = torch.full_like(weights[name], torch.inf)
    safetensors.torch.save_file(weights, run / WEIGHTS, metadata={"format": "pt"})
    return run


def test_a_served_run_knows_its_weights_its_limits_and_that_it_is_well(lm_run: Path) -> None:
    served = ServedDecoder.load(ServeConfig(run=lm_run), GenerationObserver())
    assert (served.name, served.version) == ("tiny_lm", weights_version(lm_run / WEIGHTS))
    assert (served.reading.max_tokens, served.reading.vocab_size) == (CONFIG.max_tokens, CONFIG.vocab_size)
    assert asyncio.run(served.canary()) and not served.is_stuck
    served.close()


def test_the_canary_notices_other_weights(lm_run: Path) -> None:
    language = Language.load(lm_run)
    assert language.is_sane()
    with torch.no_grad():
        language.decoder.model.norm.weight.add_(0.1)
    assert not language.is_sane()


def test_bfloat16_is_what_computes(lm_run: Path) -> None:
    assert Language.load(lm_run, "bfloat16").decoder.lm_head.weight.dtype == torch.bfloat16


def test_a_run_that_answers_is_a_candidate(lm_run: Path, tmp_path: Path) -> None:
    release = Releases(tmp_path).copy(lm_run)
    candidate = try_out_decoder(release, ServeConfig(run=lm_run))
    assert candidate.version == weights_version(lm_run / WEIGHTS)
    assert candidate.offers[:4] == ("granularity S", "granularity M", "granularity L", "granularity XL")


def test_a_release_keeps_the_losses(lm_run: Path, tmp_path: Path) -> None:
    release = Releases(tmp_path).copy(lm_run)
    assert (release.run / "scores.json").read_text() == (lm_run / "scores.json").read_text()


def test_values_that_are_not_finite_are_refused(spoilt: Path) -> None:
    with pytest.raises(CheckpointError, match="not finite"):
        try_out_decoder(Release(1, spoilt), ServeConfig(run=spoilt))


def test_another_tokenizer_is_less_than_callers_rely_on(lm_run: Path, tmp_path: Path) -> None:
    old = try_out_decoder(Release(1, lm_run), ServeConfig(run=lm_run))
    same = write_run(tmp_path / "same", seed=1)
    check_not_narrower(old, try_out_decoder(Release(2, same), ServeConfig(run=same)))
    other = write_run(tmp_path / "other", seed=1)
    path = other / "tokenizer.json"
    path.write_text(path.read_text().replace("<eos>", "<end>"))
    with pytest.raises(CheckpointError, match="does not offer tokenizer"):
        check_not_narrower(old, try_out_decoder(Release(3, other), ServeConfig(run=other)))


def test_an_image_text_run_is_not_served_as_a_language_model(tiny_run: Path) -> None:
    with pytest.raises(CheckpointError, match="holds an image-text encoder"):
        try_out_decoder(Release(1, tiny_run), ServeConfig(run=tiny_run))
