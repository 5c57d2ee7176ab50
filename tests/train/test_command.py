from pathlib import Path

import pytest

from elastic.errors import CheckpointError, ConfigError
from elastic.lm.training.job import MatlmJob
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.recipes.debug import debug
from elastic.recipes.icons import icons
from elastic.recipes.matlm import matlm_debug
from elastic.train.command import Train
from elastic.train.job import EncoderJob
from elastic.train.record import Origin, write_record


def parse(*words: str) -> Train:
    return Train.parse(words, prog="elastic train")


def record(run_dir: Path, train: Train) -> None:
    write_record(run_dir, train.config, train.origin, collect(device_fingerprint()))


def test_without_a_word_the_default_recipe_is_taken_as_it_is():
    train = parse()
    assert train.config == icons()
    assert train.origin == Origin(recipe="icons")


def test_a_flag_changes_one_field_of_the_named_recipe():
    train = parse("debug", "--optim.learning-rate", "3e-4", "--objectives.supcon.inner.temperature", "0.5")
    assert train.config.optim.learning_rate == 3e-4
    assert train.config.objectives["supcon"].inner.temperature == 0.5
    assert train.config.model == debug().model


def test_a_flag_reaches_the_sampling_of_a_stream():
    train = parse("debug", "--data.streams.0.sampling.classes-per-batch", "4")
    assert train.config.data.streams[0].sampling.batch_size == 8


def test_where_a_run_happens_is_no_part_of_its_config():
    train = parse("debug", "--run-dir", "here", "--address", "auto", "--steps", "3")
    assert train.origin == Origin(recipe="debug", arguments=("--steps", "3"))
    assert (train.options.run_dir, train.options.address) == (Path("here"), "auto")


def test_a_misspelt_recipe_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'icons_demo'"):
        parse("icon_demo")


def test_a_contradiction_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="checkpoint_every=7"):
        parse("debug", "--checkpoint-every", "7")


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse("debug", "--optim.learning-rte", "1")
    assert exit_.value.code == 2
    assert "--optim.learning-rate" in capsys.readouterr().err


def test_help_explains_the_recipe_and_lists_the_others(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse("debug", "--help")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "Every part of a run in seconds" in text
    assert "icons_demo:" in text and "package.module:function" in text
    assert "--model.vision.width" in text and "--dry-run" in text


def test_a_resumed_run_needs_no_recipe_and_no_flags(tmp_path):
    record(tmp_path, parse("debug", "--steps", "7"))
    train = parse("--resume", "--run-dir", str(tmp_path))
    assert train.config.steps == 7 and train.config.name == "debug"
    assert train.options.resume and train.options.run_dir == tmp_path


def test_flags_given_when_resuming_are_taken_as_they_stand(tmp_path):
    record(tmp_path, parse("debug", "--steps", "7"))
    assert parse("debug", "--resume", "--run-dir", str(tmp_path), "--steps", "8").config.steps == 8


def test_a_run_made_in_python_is_resumed_there(tmp_path):
    write_record(tmp_path, debug(), Origin(), collect(device_fingerprint()))
    with pytest.raises(CheckpointError, match="resume it there"):
        parse("--resume", "--run-dir", str(tmp_path))


def test_a_dry_run_prints_and_writes_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse("debug", "--dry-run").run()
    assert "1,768" in capsys.readouterr().out  # training classes of the bundled icons
    assert not list(tmp_path.iterdir())


def test_a_recipe_of_a_language_model_has_the_flags_of_one():
    train = parse("matlm_debug", "--text.block-size", "16", "--decoder.depth", "1", "--distillation", "0.25")
    assert train.config.text.block_size == 16 and train.config.decoder.depth == 1 and train.config.distillation == 0.25
    assert train.config.optim == matlm_debug().optim
    assert isinstance(train.job, MatlmJob) and isinstance(parse("debug").job, EncoderJob)


def test_a_dry_run_of_a_language_model_prints_what_it_costs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parse("matlm_debug", "--dry-run").run()
    assert "non-embedding params" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
