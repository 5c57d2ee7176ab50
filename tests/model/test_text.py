"""The text tower: padding never matters, and it is nested like the image tower."""

import pytest
import torch

from elastic.errors import ConfigError
from elastic.model.config import TextConfig
from elastic.model.encoder import Encoder
from elastic.model.text import TextTower
from elastic.submodel import Submodel


@pytest.fixture
def tower(encoder: Encoder) -> TextTower:
    assert encoder.text is not None
    return encoder.text


FULL = Submodel((64, 64))


def test_padding_does_not_change_an_embedding(tower: TextTower):
    short, short_mask = torch.tensor([[3, 4]]), torch.tensor([[True, True]])
    padded = torch.tensor([[3, 4, 0, 0, 0]])
    embeddings = [tower(short, short_mask, FULL), tower(padded, padded != 0, FULL)]
    torch.testing.assert_close(embeddings[0], embeddings[1], rtol=0, atol=1e-6)


def test_what_stands_in_padding_is_not_read(tower: TextTower):
    mask = torch.tensor([[True, True, False]])
    one, other = torch.tensor([[3, 4, 0]]), torch.tensor([[3, 4, 9]])
    assert torch.equal(tower(one, mask, FULL), tower(other, mask, FULL))


def test_the_order_of_tokens_matters(tower: TextTower):
    mask = torch.tensor([[True, True]])
    difference = tower(torch.tensor([[3, 4]]), mask, FULL) - tower(torch.tensor([[4, 3]]), mask, FULL)
    assert difference.abs().max() > 1e-3


def test_a_caption_without_tokens_is_one_padding_token(tower: TextTower):
    nothing = tower(torch.tensor([[0, 0, 0]]), torch.tensor([[False, False, False]]), FULL)
    padding = tower(torch.tensor([[0]]), torch.tensor([[True]]), FULL)
    assert nothing.isfinite().all()
    torch.testing.assert_close(nothing, padding, rtol=0, atol=1e-6)


def test_hidden_units_beyond_the_width_get_exactly_zero_gradient(tower: TextTower):
    tower(torch.tensor([[3, 4]]), torch.tensor([[True, True]]), Submodel((8, 32))).square().sum().backward()
    for block, ffn_dim in zip(tower.blocks, (8, 32), strict=True):
        assert (block.mlp.fc1.weight.grad[ffn_dim:] == 0).all() and (block.mlp.fc1.weight.grad[:ffn_dim] != 0).any()
        assert (block.mlp.fc2.weight.grad[:, ffn_dim:] == 0).all()


def test_a_text_submodel_equals_the_same_prefix_masked(tower: TextTower):
    tokens, mask = torch.tensor([[3, 4, 5]]), torch.tensor([[True, True, True]])
    sliced = tower(tokens, mask, Submodel((8, 16)))
    with torch.no_grad():
        for block, ffn_dim in zip(tower.blocks, (8, 16), strict=True):
            block.mlp.fc2.weight[:, ffn_dim:] = 0
    torch.testing.assert_close(sliced, tower(tokens, mask, FULL), rtol=0, atol=1e-6)


def test_more_tokens_than_positions_is_a_programming_error(tower: TextTower):
    with pytest.raises(AssertionError, match="9 tokens, at most 8"):
        tower(torch.ones(1, 9, dtype=torch.int64), torch.ones(1, 9, dtype=torch.bool), FULL)


def test_sizes_that_cannot_be_built_are_refused():
    with pytest.raises(ConfigError, match="must divide width 128"):
        TextConfig(num_heads=3)
    with pytest.raises(ConfigError, match="positive vocab_size"):
        TextConfig(vocab_size=0)
