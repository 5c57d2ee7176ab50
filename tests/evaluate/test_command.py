import json

import pytest
import torch

from elastic.checkpoint import Manifest, save_model
from elastic.errors import ConfigError
from elastic.evaluate.command import Evaluate
from elastic.evaluate.report import REPORT
from elastic.evaluate.result import BASELINES, load_baselines
from elastic.lm.training.job import MatlmJob
from elastic.profile.store import load_quality
from elastic.train.record import Origin

from ..lm.training.sums import prepare_sums, tiny_config
from .conftest import PREPROCESS


@pytest.fixture
def run_dir(tmp_path, encoder, tokenizer):
    run = tmp_path / "tiny_run"
    save_model(run, encoder, Manifest(encoder=encoder.config, preprocess=PREPROCESS), tokenizer)
    return run


def test_evaluating_a_run_leaves_table_baselines_report_and_plots_in_it(run_dir, colours, capsys):
    Evaluate(run_dir=run_dir, source=colours).run()
    manifest = Manifest.from_json(run_dir / "elastic.json")
    assert manifest.tables == {"quality": "quality.parquet"}
    space = manifest.space
    assert load_quality(run_dir).row(space.full, space.full, space.full_embed_dim).num_queries == 15
    assert set(load_baselines(run_dir / BASELINES)) == {"chance", "pixels"}
    assert (run_dir / REPORT).read_text().startswith("# Retrieval quality of `tiny_run`")
    assert len(list((run_dir / "plots").glob("*.png"))) == 3
    shown = capsys.readouterr().out
    assert "R@1 of tiny_run" in shown
    assert "pixels (12 x 12)" in shown


def test_results_go_elsewhere_when_asked(run_dir, colours, tmp_path):
    Evaluate(run_dir=run_dir, source=colours, baselines=(), out=tmp_path / "elsewhere").run()
    assert (tmp_path / "elsewhere" / REPORT).is_file()
    assert not (run_dir / REPORT).exists()
    assert Manifest.from_json(run_dir / "elastic.json").tables == {}


def test_a_device_that_is_not_there_is_refused(run_dir, colours, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA"):
        Evaluate(run_dir=run_dir, source=colours, device="cuda").run()


def test_a_language_model_is_evaluated_on_the_text_it_held_out(tmp_path, capsys):
    (tmp_path / "text").mkdir()
    prepare_sums(tmp_path / "text")
    run, job = tmp_path / "run", MatlmJob(tiny_config(tmp_path / "text"))
    job.start(run, Origin())
    job.prepare().work(run, torch.device("cpu"))
    Evaluate(run_dir=run, max_blocks=4).run()
    assert "held-out tokens" in capsys.readouterr().out
    assert (run / REPORT).read_text().startswith("# `run` on held-out text")
    assert json.loads((run / "scores.json").read_text())["num_tokens"] == 64
