from collections import Counter

import pytest

from elastic.errors import ConfigError
from elastic.submodel import Space
from elastic.train.submodels import SubmodelSampler, SubmodelSampling

SPACE = Space(depth=3, ffn_dims=(8, 16, 32, 64), embed_dims=(4, 8))


def names(sampling: SubmodelSampling, steps: int, seed: int = 0) -> list[tuple[str, ...]]:
    sampler = SubmodelSampler(SPACE, sampling, seed)
    return [tuple(SPACE.name(submodel) for submodel in sampler.at(step)) for step in range(steps)]


def test_the_draw_is_a_function_of_seed_and_step_alone():
    sampling = SubmodelSampling(policy="sample", k=2)
    forward = names(sampling, 50)
    sampler = SubmodelSampler(SPACE, sampling, seed=0)
    backward = [tuple(SPACE.name(submodel) for submodel in sampler.at(step)) for step in reversed(range(50))]
    assert forward == backward[::-1]
    assert forward != names(sampling, 50, seed=1)


def test_all_trains_every_granularity_largest_first():
    assert names(SubmodelSampling(policy="all"), 3) == [("XL", "L", "M", "S")] * 3


def test_sandwich_trains_the_two_ends_and_k_between():
    drawn = names(SubmodelSampling(policy="sandwich", k=1), 60)
    assert all(step[0] == "XL" and step[-1] == "S" and len(step) == 3 for step in drawn)
    assert {step[1] for step in drawn} == {"M", "L"}


def test_sandwich_of_nothing_between_is_the_two_ends():
    assert set(names(SubmodelSampling(policy="sandwich", k=0), 5)) == {("XL", "S")}


def test_anchored_trains_the_largest_and_k_smaller_ones():
    drawn = names(SubmodelSampling(policy="anchored", k=1), 60)
    assert all(step[0] == "XL" and len(step) == 2 for step in drawn)
    assert {step[1] for step in drawn} == {"S", "M", "L"}


def test_sampling_follows_its_probabilities():
    probabilities = (0.2, 0.2, 0.22, 0.38)
    counts = Counter(name for step in names(SubmodelSampling(probabilities=probabilities), 4000) for name in step)
    shares = [counts[name] / 4000 for name in ("S", "M", "L", "XL")]
    assert shares == pytest.approx(probabilities, abs=0.03)  # four standard deviations


def test_a_granularity_of_probability_zero_is_never_drawn():
    drawn = names(SubmodelSampling(probabilities=(0.5, 0.0, 0.5, 0.0)), 100)
    assert {name for step in drawn for name in step} == {"S", "L"}


def test_k_granularities_are_drawn_without_repeats():
    assert all(len(set(step)) == 3 for step in names(SubmodelSampling(policy="sample", k=3), 50))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"policy": "sample", "k": 0}, "submodels.k"),
        ({"policy": "sandwich", "k": -1}, "submodels.k"),
        ({"probabilities": (0.5, 0.6)}, "submodels.probabilities"),
        ({"probabilities": (1.5, -0.5)}, "submodels.probabilities"),
    ],
)
def test_a_contradictory_sampling_is_refused(arguments, field):
    with pytest.raises(ConfigError) as error:
        SubmodelSampling(**arguments)
    assert error.value.field == field


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"probabilities": (0.5, 0.5)}, "submodels.probabilities"),
        ({"policy": "sandwich", "k": 3}, "submodels.k"),
        ({"policy": "sample", "k": 2, "probabilities": (0.0, 0.0, 0.0, 1.0)}, "submodels.k"),
    ],
)
def test_a_sampling_that_the_space_cannot_satisfy_is_refused(arguments, field):
    with pytest.raises(ConfigError) as error:
        SubmodelSampler(SPACE, SubmodelSampling(**arguments), seed=0)
    assert error.value.field == field
