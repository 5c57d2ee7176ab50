from dataclasses import replace

import pytest
import torch

from elastic.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint, load_model
from elastic.data.feed import LocalFeed
from elastic.errors import ConfigError
from elastic.train.balance import Balancing
from elastic.train.ending import STOP_FILE
from elastic.train.metrics import read_metrics
from elastic.train.optim import is_held_back
from elastic.train.preparation import check_data, dimensions
from elastic.train.state import TrainState

from .runs import losses, start, train


class FailingFeed(LocalFeed):
    """Breaks off where the power would."""

    def __init__(self, config, num_batches):
        super().__init__(config)
        self._num_batches = num_batches

    def batches(self, start_step, num_steps):
        for number, batch in enumerate(super().batches(start_step, num_steps)):
            if number == self._num_batches:
                raise KeyboardInterrupt
            yield batch


def assert_same_state(first, second):
    one, other = (load_checkpoint(latest_checkpoint(path))["state"] for path in (first, second))
    assert one["step"] == other["step"]
    for part in ("learner", "average"):
        assert all(torch.equal(one[part][name], other[part][name]) for name in one[part])
    for mine, theirs in zip(
        one["optimizer"]["state"].values(), other["optimizer"]["state"].values(), strict=True
    ):  # fmt: skip
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_a_run_leaves_records_checkpoints_and_a_model(drawings_config, tmp_path):
    run_dir = tmp_path / "run"
    assert train(drawings_config, run_dir) == 6
    assert [record["step"] for record in read_metrics(run_dir)] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in list_checkpoints(run_dir)] == ["step_00000004", "step_00000006"]
    encoder, manifest, tokenizer = load_model(run_dir)
    assert tokenizer is not None
    assert manifest.provenance["step"] == 6 and manifest.provenance["recipe"] == "tiny"
    assert manifest.domains == ("default",)
    averaged = load_checkpoint(latest_checkpoint(run_dir))["state"]["average"]
    assert all(torch.equal(value, averaged[name]) for name, value in encoder.state_dict().items())


def test_equal_configs_give_equal_losses_and_weights(drawings_config, tmp_path):
    train(drawings_config, tmp_path / "a")
    train(drawings_config, tmp_path / "b")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert_same_state(tmp_path / "a", tmp_path / "b")


def test_another_seed_gives_other_losses(drawings_config, tmp_path):
    train(replace(drawings_config, steps=1), tmp_path / "a")
    train(replace(drawings_config, steps=1, seed=1), tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_was_cut_off_between_checkpoints_ends_like_one_that_was_not(drawings_config, tmp_path, accumulate):
    config = replace(drawings_config, accumulate=accumulate)
    train(config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "cut", FailingFeed, 3 * accumulate)
    assert latest_checkpoint(tmp_path / "cut").name == "step_00000002"
    assert train(config, tmp_path / "cut") == 6
    assert losses(tmp_path / "cut") == losses(tmp_path / "straight")
    assert_same_state(tmp_path / "cut", tmp_path / "straight")


@pytest.fixture
def balanced_config(drawings_config):
    """Two streams whose weights are set anew after steps 2, 6 and 10."""
    one = drawings_config.data.streams[0]
    data = replace(drawings_config.data, streams=(one, replace(one, name="again")), segment_steps=4)
    return replace(drawings_config, data=data, balancing=Balancing(term="classes/ce"), steps=12, checkpoint_every=4)


def test_a_run_whose_weights_follow_the_loss_ends_the_same_when_cut_off_inside_a_segment(balanced_config, tmp_path):
    train(balanced_config, tmp_path / "straight")
    with pytest.raises(KeyboardInterrupt):
        train(balanced_config, tmp_path / "cut", FailingFeed, 9)
    # After step 8 the weights of segment 2 are set, and the window of the next has two steps.
    saved = load_checkpoint(latest_checkpoint(tmp_path / "cut"))
    assert list(saved["stream_weights"]) == [1, 2] and saved["balancer"]["window"][1].sum() == 2
    assert train(balanced_config, tmp_path / "cut") == 12
    assert losses(tmp_path / "cut") == losses(tmp_path / "straight")
    assert_same_state(tmp_path / "cut", tmp_path / "straight")
    weights = [record["weights/again"] for record in losses(tmp_path / "cut")]
    assert weights[:1] == [0.5] and len(set(weights)) == 4
    assert all(record["weights/icons"] + record["weights/again"] == 1 for record in losses(tmp_path / "cut"))


def test_a_frozen_image_tower_stays_as_it_was_while_its_head_and_the_rest_learn(drawings_config, tmp_path):
    frozen = replace(drawings_config, optim=replace(drawings_config.optim, freeze_encoder=0.5), checkpoint_every=3)
    train(frozen, tmp_path / "run")
    start = TrainState(frozen, dimensions(frozen, check_data(frozen)), torch.device("cpu")).learner.state_dict()
    middle, end = (load_checkpoint(path)["state"]["learner"] for path in list_checkpoints(tmp_path / "run"))
    same = {name for name, value in start.items() if torch.equal(value, middle[name])}
    assert same == {name for name in start if is_held_back(name)} and same
    assert not any(torch.equal(middle[name], end[name]) for name in start if "mlp" in name)


def test_a_stop_request_saves_and_returns_and_the_run_can_go_on(drawings_config, tmp_path):
    train(drawings_config, tmp_path / "straight")
    start(drawings_config, tmp_path / "stopped")
    (tmp_path / "stopped" / STOP_FILE).touch()
    assert train(drawings_config, tmp_path / "stopped") == 1
    assert latest_checkpoint(tmp_path / "stopped").name == "step_00000001"
    (tmp_path / "stopped" / STOP_FILE).unlink()
    assert train(drawings_config, tmp_path / "stopped") == 6
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")
    assert_same_state(tmp_path / "stopped", tmp_path / "straight")


def test_the_last_checkpoint_never_comes_without_its_model(drawings_config, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("elastic.train.loop.save_checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        train(replace(drawings_config, checkpoint_every=6), tmp_path / "run")
    assert load_model(tmp_path / "run")[1].provenance["step"] == 6


def test_resuming_a_finished_run_changes_nothing(drawings_config, tmp_path):
    train(drawings_config, tmp_path / "run")
    before = losses(tmp_path / "run")
    assert train(drawings_config, tmp_path / "run") == 6
    assert losses(tmp_path / "run") == before


def test_records_are_means_over_the_steps_between_them(drawings_config, tmp_path):
    train(drawings_config, tmp_path / "each")
    train(replace(drawings_config, log_every=2), tmp_path / "pairs")
    each = [record["loss"] for record in losses(tmp_path / "each")]
    pairs = [record["loss"] for record in losses(tmp_path / "pairs")]
    assert pairs == pytest.approx([(each[i] + each[i + 1]) / 2 for i in (0, 2, 4)], rel=1e-5)


def test_validation_adds_to_the_records_it_is_due_at_and_changes_nothing_else(config, tmp_path):
    text = replace(config.model.text, vocab_size=512)
    data = replace(config.data, hold_decoded_bytes=0)  # three batches do not need every icon decoded
    quick = replace(config, model=replace(config.model, text=text), data=data, steps=3, checkpoint_every=3)
    train(quick, tmp_path / "without")
    train(replace(quick, validate_every=2), tmp_path / "with")
    measured = [{name for name in record if name.startswith("val/")} for record in losses(tmp_path / "with")]
    assert [len(names) for names in measured] == [0, 4, 4]  # when due, and at the end
    trained = [{k: v for k, v in record.items() if not k.startswith("val/")} for record in losses(tmp_path / "with")]
    assert trained == losses(tmp_path / "without")


def test_a_run_that_diverges_says_so_and_saves_nothing(drawings_config, tmp_path):
    hot = replace(drawings_config, optim=replace(drawings_config.optim, learning_rate=1e38, warmup_fraction=0.0))
    with pytest.raises(ConfigError, match="diverged") as error:
        train(hot, tmp_path / "run")
    assert error.value.field == "optim.learning_rate"
    assert all(torch.isfinite(value).all() for value in saved_weights(tmp_path / "run"))


def saved_weights(run_dir):
    newest = latest_checkpoint(run_dir)
    return [] if newest is None else list(load_checkpoint(newest)["state"]["learner"].values())
