import asyncio
import logging

import pytest
from grpc_health.v1.health_pb2 import HealthCheckResponse

from elastic.serve.api.health import Health

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


class Canary:
    def __init__(self, *answers: bool) -> None:
        self.answers = list(answers)
        self.num_calls = 0

    async def __call__(self) -> bool:
        self.num_calls += 1
        return self.answers.pop(0)


def statuses(health: Health, *services: str) -> list[int | None]:
    async def ask() -> list[int | None]:
        replies = [await health.check(service) for service in services]
        return [None if reply is None else reply.status for reply in replies]

    return asyncio.run(ask())


def test_health_is_what_the_canary_says() -> None:
    assert statuses(Health(Canary(True, False, True), max_age_s=-1.0), "", "", "") == [SERVING, NOT_SERVING, SERVING]


def test_the_service_is_known_by_name_and_others_are_not() -> None:
    assert statuses(Health(Canary(True)), "elastic.v1.EmbeddingService", "other") == [SERVING, None]


def test_all_services_are_listed_with_one_answer() -> None:
    listed = asyncio.run(Health(Canary(False)).check_all()).statuses
    assert {name: response.status for name, response in listed.items()} == {
        "": NOT_SERVING,
        "elastic.v1.EmbeddingService": NOT_SERVING,
    }


def test_frequent_probes_share_one_canary() -> None:
    canary = Canary(True, True)
    assert statuses(Health(canary, max_age_s=60.0), "", "", "") == [SERVING] * 3
    assert canary.num_calls == 1


def test_a_canary_that_raises_is_not_serving(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> bool:
        raise RuntimeError("the model is gone")

    with caplog.at_level(logging.ERROR):
        assert statuses(Health(broken), "") == [NOT_SERVING]
    assert "canary" in caplog.text


def test_a_canary_may_take_its_time_behind_a_long_batch_but_not_behind_a_stuck_one() -> None:
    polls = [False, False, True]

    async def waiting() -> bool:
        await asyncio.Event().wait()
        return True

    health = Health(waiting, is_stuck=lambda: polls.pop(0), poll_s=0.001)
    assert statuses(health, "") == [NOT_SERVING]
    assert polls == []


def test_a_slow_canary_that_answers_is_serving() -> None:
    async def slow() -> bool:
        await asyncio.sleep(0.02)
        return True

    assert statuses(Health(slow, poll_s=0.001), "") == [SERVING]


def test_a_server_that_drains_is_sound_but_serves_nothing_new() -> None:
    async def drained() -> tuple[bool, bool]:
        health = Health(Canary(True))
        health.drain()
        return await health.is_sound(), await health.is_serving()

    assert asyncio.run(drained()) == (True, False)


def test_watching_ends_with_the_server() -> None:
    async def follow() -> list[int]:
        health, seen = Health(Canary(True)), []
        async for reply in health.watch("", interval_s=0.0):
            seen.append(reply.status)
            health.drain()
        return seen

    assert asyncio.run(follow()) == [SERVING, NOT_SERVING]


def test_watch_tells_the_state_and_then_each_change() -> None:
    async def follow() -> list[int]:
        health = Health(Canary(True, True, False, False, True), max_age_s=-1.0)
        seen: list[int] = []
        async for reply in health.watch("", interval_s=0.0):
            seen.append(reply.status)
            if len(seen) == 3:
                break
        return seen

    assert asyncio.run(follow()) == [SERVING, NOT_SERVING, SERVING]


def test_watching_an_unknown_service_says_so() -> None:
    async def follow() -> list[int]:
        return [reply.status async for reply in Health(Canary()).watch("other")]

    assert asyncio.run(follow()) == [HealthCheckResponse.SERVICE_UNKNOWN]
