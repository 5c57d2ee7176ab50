"""Slots for keys and values: written behind each sequence, cut back by a number, never read beyond it."""

import pytest
import torch

from elastic.errors import InvalidRequest
from elastic.model.cache import KvCache


def new_cache(batch: int = 2, slots: int = 8) -> KvCache:
    shape = (1, batch, 1, slots, 2)
    return KvCache(torch.zeros(shape), torch.zeros(shape))


def tokens(*values: float) -> torch.Tensor:
    """Keys of one head whose features all are the given value, one row of tokens per sequence of two."""
    return torch.tensor(values, dtype=torch.float32).reshape(2, 1, -1, 1).expand(-1, -1, -1, 2)


def test_new_tokens_stand_behind_the_old():
    cache = new_cache()
    cache.write(0, tokens(1, 2, 3, 4), tokens(1, 2, 3, 4))
    cache.advance(2)
    keys, values = cache.write(0, tokens(5, 6), tokens(7, 8))
    assert keys[:, 0, :, 0].tolist() == [[1, 2, 5], [3, 4, 6]]
    assert values[:, 0, :, 0].tolist() == [[1, 2, 7], [3, 4, 8]]


def test_ragged_sequences_are_written_at_their_own_ends():
    cache = new_cache()
    cache.write(0, tokens(1, 2, 3, 4), tokens(1, 2, 3, 4))
    cache.advance(2)
    cache.rewind([2, 1])
    keys, _ = cache.write(0, tokens(5, 6), tokens(5, 6))
    assert keys[:, 0, :, 0].tolist() == [[1, 2, 5], [3, 6, 0]]
    assert cache.lengths == [2, 1], "writing does not count"


def test_a_token_sees_its_own_slot_and_those_before():
    cache = new_cache()
    cache.lengths = [2, 1]
    visible = cache.visible(2)
    assert visible is not None
    assert visible[:, 0].tolist() == [
        [[True, True, True, False], [True, True, True, True]],
        [[True, True, False, False], [True, True, True, False]],
    ]


def test_one_token_behind_even_sequences_sees_everything():
    cache = new_cache()
    cache.lengths = [3, 3]
    assert cache.visible(1) is None


def test_what_does_not_fit_is_refused():
    cache = new_cache(slots=4)
    cache.lengths = [1, 3]
    cache.reserve(1)
    with pytest.raises(InvalidRequest, match="3 tokens and 2 more do not fit the cache's 4 slots"):
        cache.reserve(2)


def test_sequences_are_only_cut_back():
    cache = new_cache()
    with pytest.raises(AssertionError):
        cache.rewind([1, 0])


def test_kept_rows_hold_their_own_tokens():
    cache = new_cache()
    cache.write(0, tokens(1, 2, 3, 4), tokens(5, 6, 7, 8))
    cache.lengths = [2, 1]
    kept = cache.keep([1])
    assert kept.lengths == [1]
    assert kept.keys[0, 0, 0, :2, 0].tolist() == [3, 4]
    assert kept.values[0, 0, 0, :2, 0].tolist() == [7, 8]


def test_memory_is_counted():
    assert new_cache().num_bytes == 2 * 2 * 8 * 2 * 4
