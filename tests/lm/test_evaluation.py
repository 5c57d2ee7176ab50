"""The scores of a run: against a loop, on the text that it held out, and written as JSON."""

import json
import math

import pytest
import torch

from elastic.lm.checkpoint import load_matlm
from elastic.lm.evaluation import evaluate_matlm, held_out_text
from elastic.lm.training.job import MatlmJob
from elastic.profile.store import SCORES
from elastic.submodel import Submodel
from elastic.train.record import Origin

from .training.sums import BLOCK, prepare_sums, tiny_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    prepare_sums(folder)
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    job = MatlmJob(tiny_config(folder))
    job.start(run_dir, Origin())
    job.prepare().work(run_dir, CPU)
    return run_dir


@pytest.fixture(scope="module")
def found(run):
    return evaluate_matlm(run, held_out_text(run, None), device=CPU)


def test_every_granularity_and_mix_is_scored_on_every_held_out_block(run, found):
    decoder, manifest, _ = load_matlm(run)
    text = held_out_text(run, None)
    blocks = torch.cat(list(text.validation(8)))
    assert set(found.scores) == set(manifest.decoder.space.mixes())
    assert found.num_tokens == len(blocks) * BLOCK
    mixed = Submodel((16, 32))
    with torch.no_grad():
        logits = decoder(blocks[:, :-1], mixed)
        expected = -logits.log_softmax(-1).gather(-1, blocks[:, 1:, None]).mean()
    assert found.scores[mixed].nats == pytest.approx(expected.item(), rel=1e-5)


def test_few_blocks_are_read_when_asked(run):
    done = []
    text = held_out_text(run, None)
    few = evaluate_matlm(
        run, text, device=CPU, batch_size=2, max_blocks=4, on_progress=lambda *counts: done.append(counts)
    )
    assert few.num_tokens == 4 * BLOCK and done == [(1, 2), (2, 2)]


def test_a_mix_is_compared_with_the_line_between_its_sizes(found):
    space, mixed = found.config.space, Submodel((16, 32))
    ends = [found.scores[space.uniform(dim)].nats for dim in (16, 32)]
    assert found.above_line(mixed) == pytest.approx(found.scores[mixed].nats - sum(ends) / 2)
    assert found.above_line(space.full) == 0


def test_what_is_saved_has_a_row_for_every_submodel(found, tmp_path):
    found.save(tmp_path / SCORES)
    saved = json.loads((tmp_path / SCORES).read_text())
    last = saved["submodels"][-1]
    assert len(saved["submodels"]) == len(found.scores) and last["name"] == "XL"
    assert last["agreement"] == 1 and last["perplexity"] == pytest.approx(math.exp(last["nats"]))
