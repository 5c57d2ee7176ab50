import json
from dataclasses import replace

import pytest

from elastic.errors import CheckpointError, ConfigError
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.train.record import Origin, check_unchanged, describe, read_origin, read_record, write_record


@pytest.fixture
def started(config, tmp_path):
    origin = Origin(recipe="debug", arguments=("--steps", "6"))
    write_record(tmp_path, config, origin, collect(device_fingerprint()))
    return tmp_path


def test_the_record_says_what_ran_on_what_and_how_to_repeat_it(started, config):
    record = read_record(started)
    assert record["config"] == describe(config)
    assert {"recipe", "arguments", "commit", "command", "versions", "device"} <= record.keys()
    assert read_origin(started) == Origin(recipe="debug", arguments=("--steps", "6"))


def test_a_described_config_is_json_and_names_the_kind_of_every_part(config):
    described = json.loads(json.dumps(describe(config)))
    assert described["objectives"]["supcon"]["inner"]["class"] == "MultiPositive"
    assert described["data"]["streams"][0]["sampling"]["class"] == "ClassBalanced"


def test_a_directory_that_holds_a_run_is_not_started_again(started, config):
    with pytest.raises(CheckpointError, match="--resume"):
        write_record(started, config, Origin(), collect(device_fingerprint()))


def test_an_equal_config_may_resume(started, config):
    check_unchanged(started, replace(config, seed=config.seed))


def test_workers_may_share_the_model_in_another_way_when_they_resume(started, config):
    check_unchanged(started, replace(config, parallel="fsdp"))


def test_a_changed_config_may_not_resume_and_is_told_what_changed(started, config):
    changed = replace(config, optim=replace(config.optim, learning_rate=5.0), seed=9)
    with pytest.raises(ConfigError, match="seed differ too") as error:
        check_unchanged(started, changed)
    assert error.value.field == "optim.learning_rate"
    assert error.value.value == 5.0


def test_a_removed_objective_is_a_change(started, config):
    without = replace(config, objectives={name: config.objectives[name] for name in ("supcon", "classes")})
    with pytest.raises(ConfigError, match=r"objectives\.captions"):
        check_unchanged(started, without)


def test_there_is_nothing_to_resume_in_an_empty_directory(config, tmp_path):
    with pytest.raises(CheckpointError, match="holds no run"):
        check_unchanged(tmp_path, config)
