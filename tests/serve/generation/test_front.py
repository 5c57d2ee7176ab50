from pathlib import Path

import pytest

from elastic.errors import CheckpointError
from elastic.lm.checkpoint import load_matlm
from elastic.lm.generate import Generator
from elastic.serve.generation.choice import Option
from elastic.serve.generation.front import front, measure_token_ms, measured_options, read_nats
from elastic.submodel import Submodel
from tests.serve.generation.conftest import CONFIG, NATS

GRANULARITIES = CONFIG.space.granularities


@pytest.fixture(scope="module")
def generator(lm_run: Path) -> Generator:
    return Generator(load_matlm(lm_run)[0])


def option(name: str, nats: float | None, token_ms: float) -> Option:
    return Option(GRANULARITIES[name], name, nats, token_ms)


def test_losses_are_read_by_submodel(lm_run: Path) -> None:
    assert read_nats(lm_run) == {GRANULARITIES[name]: nats for name, nats in NATS.items()}


def test_a_run_that_was_not_evaluated_has_none(tmp_path: Path) -> None:
    assert read_nats(tmp_path) == {}


DAMAGED = ["{", "{}", '{"submodels": [{"submodel": "ffn=8x2"}]}', '{"submodels": [{"submodel": "x", "nats": 1}]}']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"scores\.json: is damaged"):
        read_nats(tmp_path)


def test_every_granularity_is_timed_and_mixed_ones_where_their_losses_are_known(generator: Generator) -> None:
    mix = Submodel((32, 64))
    nats = {submodel: 3.0 + place for place, submodel in enumerate([*GRANULARITIES.values(), mix])}
    timed = measure_token_ms(generator, list(nats))
    assert set(timed) == set(nats) and min(timed.values()) > 0
    assert {option.submodel for option in measured_options(generator, {})} == set(GRANULARITIES.values())


def test_what_can_be_chosen_ascends_in_quality_and_each_step_up_costs_time(generator: Generator) -> None:
    found = measured_options(generator, {submodel: NATS[name] for name, submodel in GRANULARITIES.items()})
    assert found[-1].name == "XL"  # nothing is better, so nothing beats it
    assert [item.nats for item in found] == sorted((item.nats for item in found), reverse=True)  # type: ignore[type-var]
    assert [item.token_ms for item in found] == sorted(item.token_ms for item in found)


def test_the_front_leaves_out_what_a_better_one_beats_in_time() -> None:
    ascending = [option("S", 4.0, 10.0), option("M", 3.5, 30.0), option("L", 3.2, 20.0), option("XL", 3.0, 40.0)]
    assert [item.name for item in front(ascending)] == ["S", "L", "XL"]


def test_without_losses_nothing_is_left_out() -> None:
    ascending = [option("S", None, 10.0), option("M", None, 30.0), option("L", None, 20.0)]
    assert front(ascending) == ascending
