from collections import Counter

import numpy as np
import pytest

from elastic.lm.text.plan import BlockPlan
from elastic.lm.text.store import TokenStore


def store(*lengths: int) -> TokenStore:
    """Documents of these lengths whose tokens are all different: a token is its own place."""
    ends = np.cumsum(lengths)
    return TokenStore(np.arange(ends[-1], dtype=np.uint16), ends)


def shown(plan: BlockPlan, start: int, stop: int) -> np.ndarray:
    return plan.blocks(np.arange(start, stop))


def test_a_round_shows_every_token_once_where_blocks_fill_an_epoch():
    plan = BlockPlan(store(7, 1, 20, 12), block_size=8, seed=0)
    for number in range(3):
        inputs = shown(plan, 5 * number, 5 * number + 5)[:, :-1]
        assert sorted(inputs.ravel()) == list(range(40))


def test_what_blocks_do_not_fill_is_carried_into_the_next_round():
    # 43 tokens are 5 blocks of 8 and 3 tokens more: 43 rounds are exactly 40 epochs.
    plan = BlockPlan(store(10, 3, 30), block_size=8, seed=1)
    inputs = shown(plan, 0, 43 * 5)[:, :-1]
    assert Counter(inputs.ravel().tolist()) == dict.fromkeys(range(43), 40)


@pytest.mark.parametrize("lengths", [(10, 3, 30), (2, 1)])
def test_the_stream_is_whole_documents_in_a_new_order_every_epoch(lengths: tuple[int, ...]):
    documents, size = store(*lengths), 8
    stream = BlockPlan(documents, size, seed=2).read(np.arange(5 * documents.num_tokens)[None])[0]
    whole = [tuple(part) for part in np.split(np.arange(documents.num_tokens), documents.ends[:-1])]
    orders = set()
    for epoch in stream.reshape(5, -1).tolist():
        order = []
        while epoch:
            (document,) = [candidate for candidate in whole if candidate[0] == epoch[0]]
            assert tuple(epoch[: len(document)]) == document
            order.append(document[0])
            epoch = epoch[len(document) :]
        assert sorted(order) == [document[0] for document in whole]
        orders.add(tuple(order))
    assert len(orders) > 1


def test_targets_are_the_inputs_one_later_across_blocks_too():
    plan = BlockPlan(store(9, 15, 4), block_size=5, seed=3)
    stream = plan.read(np.arange(29)[None])[0].tolist()
    blocks = [stream[start : start + 6] for start in range(0, 25, 5)]
    assert sorted(shown(plan, 0, 5).tolist()) == sorted(blocks)


def test_blocks_of_a_long_document_do_not_follow_each_other():
    blocks = shown(BlockPlan(store(8000), block_size=8, seed=4), 0, 1000)
    assert (np.diff(blocks[:, 0]) == 8).mean() < 0.01


def test_a_block_is_the_same_whenever_it_is_asked_for():
    plan = BlockPlan(store(9, 15, 4), block_size=5, seed=5)
    later = shown(plan, 40, 60)
    again = shown(BlockPlan(store(9, 15, 4), block_size=5, seed=5), 50, 60)
    assert (later[10:] == again).all()
    assert (shown(plan, 40, 60) == later).all()
    assert (shown(BlockPlan(store(9, 15, 4), block_size=5, seed=6), 40, 60) != later).any()


def test_fewer_tokens_than_a_block_are_repeated():
    blocks = shown(BlockPlan(store(2, 1), block_size=7, seed=0), 0, 3)
    assert blocks.shape == (3, 8)
    assert Counter(blocks[:, :-1].ravel().tolist()) == dict.fromkeys(range(3), 7)
