"""Multi-positive contrast over instance classes and captions."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions
from elastic.objectives.supcon import MultiPositive

DIMS = Dimensions(embed_dim=2, width=2, num_classes=2)
CIRCLE = torch.tensor([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=torch.float64)


def test_classes_are_the_positives(make_passes: Callable, make_batch: Callable):
    loss = MultiPositive(temperature=0.5).build(DIMS)(make_passes(CIRCLE), make_batch(4, [0, 0, 1, 1]))
    assert set(loss) == {"nce"} and loss["nce"].item() == pytest.approx(0.8861, abs=1e-4)


def test_captions_are_the_positives_where_that_is_asked_for(make_passes: Callable, make_batch: Callable):
    labelled = make_batch(4, [0, 0, 1, 1])
    captioned = replace(labelled, labels=torch.tensor([0, 1, 1, 0]), caption_ids=labelled.labels)
    config = MultiPositive(temperature=0.5, by="caption_ids")
    assert config.needs == {"caption_ids"}
    assert config.build(DIMS)(make_passes(CIRCLE), captioned)["nce"].item() == pytest.approx(0.8861, abs=1e-4)


def test_the_length_of_an_embedding_does_not_matter(make_passes: Callable, make_batch: Callable):
    objective, batch = MultiPositive().build(DIMS), make_batch(4, [0, 0, 1, 1])
    scaled = CIRCLE * torch.tensor([[1], [7], [0.1], [3]], dtype=torch.float64)
    torch.testing.assert_close(
        objective(make_passes(scaled), batch)["nce"], objective(make_passes(CIRCLE), batch)["nce"]
    )


def test_descent_pulls_classes_together(make_passes: Callable, make_batch: Callable):
    z = torch.randn(6, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    objective, batch = MultiPositive().build(DIMS), make_batch(6, [0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.SGD([z], lr=1.0)
    for _ in range(100):
        optimizer.zero_grad()
        loss = objective(make_passes(z), batch)["nce"]
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01
    unit = torch.nn.functional.normalize(z.detach(), dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(dim=1)
    assert nearest.tolist() == [3, 4, 5, 0, 1, 2]


def test_it_declares_what_it_reads():
    assert MultiPositive().needs == {"labels"} and not MultiPositive().passes
    assert not list(MultiPositive().build(DIMS).parameters())


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ConfigError, match="must be positive"):
        MultiPositive(temperature=0)
