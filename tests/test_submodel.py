"""The shared nouns: text forms, Mix'n'Match candidates, translation between towers, and what is refused."""

import math
import pickle

import pytest

from elastic.errors import ConfigError, InvalidRequest
from elastic.submodel import Choice, Slo, Space, Submodel

SPACE = Space(depth=4, ffn_dims=(32, 64, 128, 256), embed_dims=(16, 32, 64))


@pytest.mark.parametrize(
    ("ffn_dims", "text"),
    [
        ((64,), "ffn=64x1"),
        ((64, 64, 128), "ffn=64x2+128x1"),
        ((128, 64, 128), "ffn=128x1+64x1+128x1"),
        ((8,) * 12, "ffn=8x12"),
    ],
)
def test_text_form_is_run_length_encoded_and_reads_back_as_the_same_value(ffn_dims: tuple[int, ...], text: str):
    submodel = Submodel(ffn_dims)
    assert str(submodel) == text
    assert Submodel.parse(text) == submodel


def test_every_mix_of_a_space_survives_the_round_trip_through_text():
    for submodel in SPACE.mixes():
        assert SPACE.parse(str(submodel)) == submodel


def test_a_count_of_one_and_the_prefix_may_be_left_out():
    assert Submodel.parse("64x2+128") == Submodel((64, 64, 128))


@pytest.mark.parametrize(
    "text", ["", "ffn=", "ffn=64x", "ffn=x3", "ffn=64x2,128", "ffn=-64x2", "ffn=6.4x2", "ffn=64 x2"]
)
def test_malformed_text_is_refused_and_quoted(text: str):
    with pytest.raises(InvalidRequest, match="is not of the form") as caught:
        Submodel.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["ffn=64x0", "ffn=0x2"])
def test_text_without_layers_or_with_a_zero_size_is_refused(text: str):
    with pytest.raises(InvalidRequest, match="no layers or a size of zero"):
        Submodel.parse(text)


@pytest.mark.parametrize("ffn_dims", [(), (0,), (64, -1)])
def test_a_submodel_needs_layers_of_positive_size(ffn_dims: tuple[int, ...]):
    with pytest.raises(ConfigError, match="ffn_dims"):
        Submodel(ffn_dims)


def test_submodels_are_equal_by_value_and_usable_as_keys_after_pickling():
    table = {Submodel((1, 2)): "a"}
    assert table[pickle.loads(pickle.dumps(Submodel((1, 2))))] == "a"


def test_uniform_means_one_size_in_all_layers():
    assert SPACE.full.is_uniform and not Submodel((64, 128)).is_uniform


@pytest.mark.parametrize(
    "broken",
    [
        {"depth": 0},
        {"ffn_dims": ()},
        {"ffn_dims": (64, 32)},
        {"ffn_dims": (32, 32)},
        {"embed_dims": (0, 16)},
        {"embed_dims": ()},
    ],
)
def test_a_space_refuses_sizes_that_do_not_ascend(broken: dict[str, object]):
    fields: dict[str, object] = {"depth": 2, "ffn_dims": (32, 64), "embed_dims": (16,)}
    with pytest.raises(ConfigError, match=next(iter(broken))):
        Space(**(fields | broken))  # pyright: ignore[reportArgumentType]


def test_four_granularities_carry_the_names_of_matformer():
    assert {name: submodel.ffn_dims[0] for name, submodel in SPACE.granularities.items()} == {
        "S": 32,
        "M": 64,
        "L": 128,
        "XL": 256,
    }


def test_another_number_of_granularities_is_numbered():
    assert list(Space(depth=1, ffn_dims=(8, 16), embed_dims=(4,)).granularities) == ["g0", "g1"]


def test_name_and_parse_are_inverse_for_granularities_and_mixes():
    for submodel in (SPACE.smallest, SPACE.full, Submodel((32, 32, 64, 64))):
        assert SPACE.parse(SPACE.name(submodel)) == submodel
    assert SPACE.name(SPACE.full) == "XL"
    assert SPACE.name(Submodel((32, 32, 64, 64))) == "ffn=32x2+64x2"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("XXL", "neither one of S, M, L, XL"),
        ("xl", "neither one of"),
        ("ffn=32x3", "has 3 layers, the model has 4"),
        ("ffn=48x2+96x2", r"\[48, 96\] were not trained"),
    ],
)
def test_a_submodel_outside_the_space_is_refused_with_what_the_space_holds(text: str, problem: str):
    with pytest.raises(InvalidRequest, match=problem):
        SPACE.parse(text)


def test_an_untrained_embedding_width_is_refused_with_the_trained_ones():
    SPACE.check_embed_dim(32)
    with pytest.raises(InvalidRequest, match=r"48 was not trained; choose from \(16, 32, 64\)"):
        SPACE.check_embed_dim(48)


def test_mixes_ascend_strictly_from_the_smallest_to_the_full_submodel():
    mixes = list(SPACE.mixes())
    sizes = [sum(submodel.ffn_dims) for submodel in mixes]
    assert mixes[0] == SPACE.smallest and mixes[-1] == SPACE.full
    assert sizes == sorted(set(sizes))


def test_mixes_are_exactly_the_non_decreasing_stacks_of_two_adjacent_granularities():
    adjacent = [{32, 64}, {64, 128}, {128, 256}]
    by_rule = {
        Submodel((low,) * (4 - num_high) + (high,) * num_high)
        for low, high in map(sorted, adjacent)
        for num_high in range(5)
    }
    mixes = list(SPACE.mixes())
    assert len(mixes) == len(set(mixes)) == 13
    assert set(mixes) == by_rule


def test_translate_keeps_each_granularity_at_its_relative_depth():
    text = Space(depth=2, ffn_dims=(8, 16, 32, 64), embed_dims=(16, 32, 64))
    deep = Space(depth=6, ffn_dims=(8, 16, 32, 64), embed_dims=(16, 32, 64))
    assert SPACE.translate(Submodel((32, 32, 64, 64)), onto=text) == Submodel((8, 16))
    assert SPACE.translate(Submodel((32, 64, 128, 256)), onto=deep) == Submodel((8, 8, 16, 32, 32, 64))


def test_translate_maps_every_uniform_submodel_to_its_namesake():
    text = Space(depth=3, ffn_dims=(8, 16, 32, 64), embed_dims=(16,))
    for name, submodel in SPACE.granularities.items():
        assert SPACE.translate(submodel, onto=text) == text.granularities[name]


def test_translate_onto_itself_changes_nothing():
    assert all(SPACE.translate(submodel, onto=SPACE) == submodel for submodel in SPACE.mixes())


def test_translate_needs_as_many_granularities_on_both_sides():
    with pytest.raises(ConfigError, match="needs 4 sizes"):
        SPACE.translate(SPACE.full, onto=Space(depth=4, ffn_dims=(32, 64), embed_dims=(16,)))


@pytest.mark.parametrize("latency_ms", [0.0, -1.0, math.nan, math.inf])
def test_a_latency_objective_is_positive_and_finite(latency_ms: float):
    with pytest.raises(InvalidRequest, match=r"slo\.latency_ms"):
        Slo(latency_ms)


@pytest.mark.parametrize("min_quality", [-0.1, 1.1, math.nan])
def test_a_quality_bound_lies_between_zero_and_one(min_quality: float):
    with pytest.raises(InvalidRequest, match=r"slo\.min_quality"):
        Slo(5.0, min_quality=min_quality)


def test_an_exact_width_excludes_bounds_and_bounds_must_not_cross():
    with pytest.raises(InvalidRequest, match=r"slo\.embed_dim: is exact"):
        Slo(5.0, embed_dim=32, max_embed_dim=64)
    with pytest.raises(InvalidRequest, match="64 is above max_embed_dim 32"):
        Slo(5.0, min_embed_dim=64, max_embed_dim=32)


@pytest.mark.parametrize(
    ("slo", "allowed"),
    [
        (Slo(5.0), {16, 32, 64}),
        (Slo(5.0, embed_dim=32), {32}),
        (Slo(5.0, min_embed_dim=32), {32, 64}),
        (Slo(5.0, max_embed_dim=32), {16, 32}),
        (Slo(5.0, min_embed_dim=17, max_embed_dim=63), {32}),
    ],
)
def test_allows_follows_the_exact_width_or_the_bounds(slo: Slo, allowed: set[int]):
    assert {dim for dim in SPACE.embed_dims if slo.allows(dim)} == allowed


def test_two_choices_are_equal_whatever_their_reasons_say():
    first = Choice(SPACE.full, 64, 2.0, 0.5, reason="idle")
    assert first == Choice(SPACE.full, 64, 2.0, 0.5, reason="backlog")
    assert first != Choice(SPACE.full, 32, 2.0, 0.5, reason="idle")
