from dataclasses import replace

import pytest

from elastic.errors import ConfigError
from elastic.train.balance import Balancing
from elastic.train.submodels import SubmodelSampling


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "../elsewhere"}, "name"),
        ({"steps": 0}, "steps"),
        ({"accumulate": 0}, "accumulate"),
        ({"num_workers": 0}, "num_workers"),
        ({"seed": -1}, "seed"),
        ({"num_threads": -1}, "num_threads"),
        ({"objectives": {}}, "objectives"),
        ({"log_every": 4, "checkpoint_every": 6}, "checkpoint_every"),
        ({"log_every": 4, "checkpoint_every": 8, "validate_every": 6}, "validate_every"),
        ({"validate_every": -1}, "validate_every"),
        ({"submodels": SubmodelSampling(probabilities=(0.5, 0.5))}, "submodels.probabilities"),
        ({"num_workers": 3}, "data.streams.0.sampling"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_by_name(config, change, field):
    with pytest.raises(ConfigError) as error:
        replace(config, **change)
    assert error.value.field == field


BALANCING = Balancing(term="classes/ce")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"balancing": Balancing(term="udon/teacher_ce@raw")}, "balancing.term"),
        ({"balancing": BALANCING, "accumulate": 2}, "accumulate"),
        ({"balancing": Balancing(term="classes/ce", floor=0.4)}, "balancing.floor"),
    ],
)
def test_balancing_that_cannot_work_is_refused(config, change, field):
    streams = tuple(replace(config.data.streams[0], name=name) for name in "abc")
    three = replace(config, data=replace(config.data, streams=streams))
    assert replace(three, balancing=BALANCING).balancing is BALANCING
    with pytest.raises(ConfigError) as error:
        replace(three, **change)
    assert error.value.field == field


def test_balancing_changes_weights_which_streams_that_take_turns_do_not_have(config):
    with pytest.raises(ConfigError, match=r"data\.order"):
        replace(config, balancing=BALANCING, data=replace(config.data, order="round_robin"))


def test_balancing_needs_an_objective_that_counts_from_the_start(config):
    later = config.objectives | {"classes": replace(config.objectives["classes"], start=0.5)}
    with pytest.raises(ConfigError, match=r"balancing\.term"):
        replace(config, balancing=BALANCING, objectives=later)


def test_the_data_must_have_the_size_that_the_model_takes(config):
    with pytest.raises(ConfigError, match=r"data\.image_size"):
        replace(config, data=replace(config.data, image_size=8))


def test_accumulation_multiplies_the_planned_batches(config):
    assert replace(config, steps=6, accumulate=3).num_batches == 18
