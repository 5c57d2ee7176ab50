"""Warping against transformers' own warpers; drawing against the cumulative distribution by hand."""

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from elastic.errors import ConfigError
from elastic.lm.sampling import Chances, Sampling, draw

LOGITS = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 30, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.4, 1e-6])
def test_warping_is_that_of_transformers(temperature: float, top_k: int, top_p: float):
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    expected = warpers(torch.zeros(40, 1, dtype=torch.int64), LOGITS.clone()).softmax(-1, dtype=torch.float64)
    found = Sampling(temperature=temperature, top_k=top_k, top_p=top_p).probabilities(LOGITS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_temperature_zero_is_all_on_the_best_token():
    found = Sampling().probabilities(LOGITS[:2])
    assert found.sum(-1).tolist() == [1, 1]
    assert found.argmax(-1).tolist() == LOGITS[:2].argmax(-1).tolist()


def test_a_token_is_drawn_where_the_cumulative_distribution_passes_the_chance():
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    chances = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-53], dtype=torch.float64)
    assert draw(probabilities.expand(6, -1), chances).tolist() == [1, 1, 3, 3, 4, 4]


def test_what_is_drawn_is_never_impossible_however_sums_are_rounded():
    probabilities = torch.rand(500, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 8
    probabilities[:, 250:] = 0
    drawn = draw(probabilities / probabilities.sum(-1, keepdim=True), torch.full((500,), 1 - 2**-53).double())
    assert drawn.max() < 250


def test_a_sequence_s_chances_do_not_depend_on_its_neighbours():
    together, alone = Chances([3, 4, 5], torch.device("cpu")), Chances([4], torch.device("cpu"))
    assert together.take([0, 2, 5], 3)[1].tolist() == alone.take([2], 3)[0].tolist()
    together.keep([1])
    assert together.take([7], 2).tolist() == alone.take([7], 2).tolist()


def test_a_place_has_the_same_chances_whenever_it_is_looked_at():
    chances, others = Chances([3], torch.device("cpu")), Chances([3], torch.device("cpu"))
    first = chances.take([0], 4)
    assert first.unique().numel() == 12
    assert chances.take([1], 1).tolist() == first[:, 1:2].tolist()
    assert torch.cat([others.take([0], 1), others.take([1], 3)], dim=1).tolist() == first.tolist()


@pytest.mark.parametrize(
    ("field", "value"), [("temperature", -1.0), ("temperature", float("inf")), ("top_k", -1), ("top_p", 0.0)]
)
def test_values_without_a_meaning_are_refused(field: str, value: float):
    with pytest.raises(ConfigError, match=field):
        Sampling(**{field: value})
