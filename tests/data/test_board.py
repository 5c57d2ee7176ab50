import asyncio

import pytest

from elastic.data.board import Board
from elastic.data.weights import WeightBook
from elastic.errors import ConfigError


def adaptive_board() -> Board:
    return Board(WeightBook((1.0, 1.0), {}, is_adaptive=True))


def test_whoever_asks_for_weights_early_gets_them_when_they_are_set():
    async def scene() -> list[object]:
        board = adaptive_board()
        waiting = asyncio.create_task(board.get_weights(1))
        await asyncio.sleep(0)
        assert not waiting.done()
        await board.set_weights(1, (2.0, 1.0))
        return [await board.get_weights(0), await waiting, await board.get_all_weights()]

    assert asyncio.run(scene()) == [(1.0, 1.0), (2.0, 1.0), {1: (2.0, 1.0)}]


def test_closing_lets_go_whoever_waits():
    async def scene() -> object:
        board = adaptive_board()
        waiting = asyncio.create_task(board.get_weights(1))
        await asyncio.sleep(0)
        await board.close()
        return await waiting

    assert asyncio.run(scene()) is None


def test_a_share_is_handed_out_once_it_exists():
    async def scene() -> object:
        board = adaptive_board()
        waiting = asyncio.create_task(board.get_share(2, 1))
        await board.set_shares(1, ["a", "b"])
        await asyncio.sleep(0)
        assert not waiting.done()
        await board.set_shares(2, ["c", "d"])
        return await waiting

    assert asyncio.run(scene()) == "d"


def test_weights_out_of_turn_are_refused():
    with pytest.raises(ConfigError, match="must be 1, the next one"):
        asyncio.run(adaptive_board().set_weights(2, (1.0, 1.0)))
