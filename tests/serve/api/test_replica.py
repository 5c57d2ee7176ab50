import asyncio

import pytest

from elastic.errors import ServerUnavailable, Unauthenticated
from elastic.serve.access.gate import Gate
from elastic.serve.api.replica import ReplicaService
from elastic.serve.retirable import Retirable


class Model(Retirable):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.abandoned: list[BaseException] = []
        self.is_closed = False

    @property
    def version(self) -> str:
        return self.name

    @property
    def is_stuck(self) -> bool:
        return self.name == "stuck"

    async def canary(self) -> bool:
        return self.name == "well"

    def abandon(self, error: BaseException) -> None:
        self.abandoned.append(error)

    def close(self) -> None:
        self.is_closed = True


class Service(ReplicaService[Model]):
    """Answers with the model of the call, when it is told to."""

    async def answer(self, go_on: asyncio.Event) -> str:
        with self._call() as served:
            self._check_accepting()
            await go_on.wait()
            return served.name


class Stranger:
    def invocation_metadata(self) -> list[tuple[str, str]]:
        return []

    def peer(self) -> str:
        return "ipv4:10.0.0.7:4000"


def test_a_call_ends_on_the_model_that_it_began_with() -> None:
    async def scenario() -> None:
        old, new, go_on = Model("old"), Model("new"), asyncio.Event()
        service = Service(old, Gate())
        call = asyncio.ensure_future(service.answer(go_on))
        await asyncio.sleep(0)
        service.swap(new)
        assert service.served is new and not old.is_closed
        go_on.set()
        assert await call == "old"
        assert old.is_closed
        assert await service.answer(go_on) == "new"

    asyncio.run(scenario())


def test_draining_waits_for_what_was_accepted_and_accepts_nothing_more() -> None:
    async def scenario() -> None:
        go_on = asyncio.Event()
        service = Service(Model("well"), Gate())
        call = asyncio.ensure_future(service.answer(go_on))
        await asyncio.sleep(0)
        assert await service.drain(0.02) == 1
        with pytest.raises(ServerUnavailable, match="shutting down"):
            await service.answer(go_on)
        go_on.set()
        assert await service.drain(1.0) == 0
        assert await call == "well"

    asyncio.run(scenario())


def test_while_the_model_is_not_sound_nobody_waits_and_nobody_is_accepted() -> None:
    async def scenario() -> None:
        model, go_on = Model("well"), asyncio.Event()
        go_on.set()
        service = Service(model, Gate())
        service.set_sound(False)
        assert [type(error) for error in model.abandoned] == [ServerUnavailable]
        with pytest.raises(ServerUnavailable, match="does not answer as it should"):
            await service.answer(go_on)
        service.set_sound(True)
        assert await service.answer(go_on) == "well"

    asyncio.run(scenario())


def test_what_is_asked_of_the_model_is_asked_of_the_one_that_is_served() -> None:
    service = Service(Model("stuck"), Gate())
    assert service.is_stuck and not asyncio.run(service.canary())
    service.swap(Model("well"))
    assert not service.is_stuck and asyncio.run(service.canary())
    service.close()
    assert service.served.is_closed


def test_who_may_not_call_is_told_so_before_anything_is_read() -> None:
    with pytest.raises(Unauthenticated):
        Service(Model("well"), Gate()).check(Stranger())
