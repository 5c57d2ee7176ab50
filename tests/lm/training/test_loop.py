"""Runs on prepared text without Ray: what they leave, and that stopping changes nothing."""

from dataclasses import replace

import pytest
import torch

from elastic.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint
from elastic.errors import ConfigError
from elastic.lm.checkpoint import load_matlm
from elastic.lm.training.job import MatlmJob
from elastic.train.ending import STOP_FILE
from elastic.train.record import Origin
from elastic.train.submodels import SubmodelSampling


def assert_same_state(first, second):
    one, other = (load_checkpoint(latest_checkpoint(path)) for path in (first, second))
    assert one["step"] == other["step"]
    for part in ("decoder", "average"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    for mine, theirs in zip(one["optimizer"]["state"].values(), other["optimizer"]["state"].values(), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_leaves_records_checkpoints_and_a_model(config, text, train, losses, tmp_path):
    run = tmp_path / "run"
    assert train(config, text, run) == 6
    records = losses(run)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert {f"val/nats/{name}" for name in ("S", "M", "L", "XL")} <= records[-1].keys()
    assert "val/nats/XL" not in records[0]
    assert [path.name for path in list_checkpoints(run)] == ["step_00000004", "step_00000006"]
    decoder, manifest, tokenizer = load_matlm(run)
    assert tokenizer.to_str() == text.tokenizer.to_str() and manifest.eos_token_ids == (text.end_of_text,)
    assert manifest.provenance["step"] == 6 and manifest.provenance["weights"] == "of the last step"
    trained = load_checkpoint(latest_checkpoint(run))["decoder"]
    assert all(torch.equal(value, trained[name]) for name, value in decoder.state_dict().items())


def test_the_last_checkpoint_never_comes_without_its_model(config, text, train, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("elastic.lm.training.loop.save_checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, checkpoint_every=6), text, tmp_path / "run")
    assert load_matlm(tmp_path / "run")[1].provenance["step"] == 6


def test_it_learns(config, text, train, losses, tmp_path):
    train(replace(config, steps=60, checkpoint_every=60, log_every=20, validate_every=20), text, tmp_path / "run")
    first, *_, last = losses(tmp_path / "run")
    assert all(last[f"val/nats/{name}"] < first[f"val/nats/{name}"] - 0.2 for name in ("S", "M", "L", "XL"))


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(config, text, train, losses, tmp_path, ema_decay):
    config = replace(config, optim=replace(config.optim, ema_decay=ema_decay))
    train(config, text, tmp_path / "straight")
    run = tmp_path / "stopped"
    MatlmJob(config).start(run, Origin(recipe="tiny"))
    (run / STOP_FILE).touch()
    assert train(config, text, run) == 1
    (run / STOP_FILE).unlink()
    assert train(config, text, run) == 6
    assert losses(run) == losses(tmp_path / "straight")
    assert_same_state(run, tmp_path / "straight")


def test_a_run_whose_loss_is_not_finite_ends_with_advice(config, text, train, tmp_path):
    wild = replace(config, optim=replace(config.optim, learning_rate=1e18, warmup_fraction=0.0))
    with pytest.raises(ConfigError, match="diverged"):
        train(wild, text, tmp_path / "run")


def test_only_the_largest_can_be_trained(config, text, train, losses, tmp_path):
    alone = replace(config, submodels=SubmodelSampling(policy="anchored", k=0), distillation=0.0)
    train(alone, text, tmp_path / "run")
    assert {name for record in losses(tmp_path / "run") for name in record if "train/" in name} == {"train/nats/XL"}
