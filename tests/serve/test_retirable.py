import pytest

from elastic.serve.retirable import Retirable


class Model(Retirable):
    def __init__(self) -> None:
        super().__init__("model")
        self.is_closed = False

    @property
    def version(self) -> str:
        return "v"

    @property
    def is_stuck(self) -> bool:
        return False

    async def canary(self) -> bool:
        return True

    def abandon(self, error: BaseException) -> None:
        raise error

    def close(self) -> None:
        self.is_closed = True


def test_what_nobody_uses_closes_when_it_is_retired() -> None:
    model = Model()
    model.retire()
    assert model.is_closed


def test_what_is_in_use_closes_with_the_last_call() -> None:
    model = Model()
    with model.in_use():
        with model.in_use():
            assert model.num_calls == 2
            model.retire()
        assert not model.is_closed
    assert model.is_closed


def test_a_call_that_fails_is_over_too() -> None:
    model = Model()
    with pytest.raises(ValueError, match="bad"), model.in_use():
        model.retire()
        raise ValueError("bad")
    assert model.is_closed


def test_calls_that_end_do_not_close_what_is_served() -> None:
    model = Model()
    with model.in_use():
        pass
    assert not model.is_closed
