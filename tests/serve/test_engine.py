import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import numpy as np
import pytest

from elastic.errors import DeadlineExceeded, InvalidRequest, Overloaded, SloInfeasible
from elastic.serve.batching import Costs, Front, Work
from elastic.serve.engine import Computed, Engine, Request
from elastic.serve.policies.lookahead import LookaheadPolicy
from elastic.serve.policy import Refuse, Run
from elastic.serve.watchdog import Watchdog
from elastic.submodel import Slo, Submodel


class FakeClock:
    """Milliseconds that pass only when the model computes."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


class FakeModel:
    """Embeds input `x` as `[x, 1, 1, ...]` and takes exactly the time that the front predicts, times `slowdown`."""

    def __init__(self, front: Front, clock: FakeClock, slowdown: float = 1.0) -> None:
        self.times = {level.submodel: level.batch_ms for level in front.levels}
        self.clock, self.slowdown = clock, slowdown
        self.batches: list[tuple[str, Submodel, list[object]]] = []
        self.gate: threading.Event | None = None

    def __call__(self, modality: str, submodel: Submodel, inputs: Sequence[object]) -> np.ndarray:
        if self.gate is not None:
            assert self.gate.wait(10)
        self.batches.append((modality, submodel, list(inputs)))
        self.clock.now_ms += self.times[submodel][len(inputs) - 1] * self.slowdown
        return np.stack([np.r_[float(x), np.ones(63)] for x in inputs]).astype(np.float32)  # type: ignore[arg-type]


class Harness:
    def __init__(self, front: Front, **settings: object) -> None:
        self.clock = FakeClock()
        self.model = FakeModel(front, self.clock)
        fronts = {"image": front, "text": front}
        settings = {"policy": LookaheadPolicy(headroom=1.0), "reply_margin_ms": 0.0} | settings
        self.engine = Engine(fronts, self.model, clock=self.clock, **settings)  # type: ignore[arg-type]

    def request(self, count: int, latency_ms: float, modality: str = "image", **slo: object) -> Request:
        now_ms = self.clock()
        objective = Slo(latency_ms=latency_ms, **slo)  # type: ignore[arg-type]
        return Request((modality,) * count, objective, now_ms, now_ms + latency_ms)  # type: ignore[arg-type]

    def embed(self, payloads: list[int], latency_ms: float, **slo: object) -> Awaitable[list[Computed]]:
        return self.engine.embed(self.request(len(payloads), latency_ms, **slo), prepared(payloads))


def prepared(payloads: Sequence[object]) -> Callable[[], Awaitable[Sequence[object]]]:
    async def prepare() -> Sequence[object]:
        return payloads

    return prepare


@pytest.fixture
def harness(front: Front) -> Harness:
    return Harness(front)


def test_answers_come_in_the_order_of_the_inputs(harness: Harness) -> None:
    found = asyncio.run(as_coroutine(harness.embed([3, 1, 2], 1000.0)))
    assert [item.embedding[0] for item in found] == [3, 1, 2]


def test_the_answer_explains_what_ran(harness: Harness) -> None:
    (found,) = asyncio.run(as_coroutine(harness.embed([1], 9.0, embed_dim=32)))
    assert (found.level.name, found.embed_dim, found.batch_size) == ("M", 32, 1)
    assert (found.predicted_ms, found.compute_ms, found.queue_ms) == (8.0, 8.0, 0.0)
    assert found.quality == pytest.approx(0.3)


def test_requests_that_wait_together_run_as_one_batch(harness: Harness) -> None:
    async def scenario() -> None:
        await asyncio.gather(harness.embed([1], 1000.0), harness.embed([2, 3], 1000.0))

    asyncio.run(scenario())
    assert [inputs for _, _, inputs in harness.model.batches] == [[1, 2, 3]]


def test_a_slow_machine_is_noticed_and_answered_with_a_smaller_submodel(front: Front) -> None:
    harness = Harness(front)
    harness.model.slowdown = 3.0

    async def scenario() -> list[str]:
        return [(await harness.embed([1], 21.0))[0].level.name for _ in range(6)]

    names = asyncio.run(scenario())
    assert names[0] == "XL"
    assert names[-1] != "XL"


def test_an_objective_below_the_fastest_submodel_is_infeasible_whatever_the_load(harness: Harness) -> None:
    with pytest.raises(SloInfeasible, match=r"fastest allowed \(S\) needs 4.00 ms"):
        asyncio.run(as_coroutine(harness.embed([1], 3.9)))
    assert harness.model.batches == []


def test_a_quality_that_no_submodel_has_is_infeasible(harness: Harness) -> None:
    with pytest.raises(SloInfeasible, match="XL"):
        asyncio.run(as_coroutine(harness.embed([1], 1000.0, min_quality=0.61)))


def test_the_quality_floor_is_kept(harness: Harness) -> None:
    (found,) = asyncio.run(as_coroutine(harness.embed([1], 13.0, min_quality=0.45)))
    assert found.level.name == "L"


def test_an_untrained_width_names_the_trained_ones(harness: Harness) -> None:
    with pytest.raises(InvalidRequest, match=r"slo.embed_dim: .*\[32, 64\]"):
        asyncio.run(as_coroutine(harness.embed([1], 1000.0, embed_dim=48)))


def test_a_modality_that_is_not_served_is_an_invalid_request(front: Front) -> None:
    harness = Harness(front)
    del harness.engine.fronts["text"]  # type: ignore[attr-defined]
    with pytest.raises(InvalidRequest, match="text"):
        asyncio.run(as_coroutine(harness.engine.embed(harness.request(1, 100.0, "text"), prepared([1]))))


def test_a_request_that_would_be_prepared_too_late_is_refused_before_that(harness: Harness) -> None:
    async def prepare() -> Sequence[object]:
        raise AssertionError("was prepared")

    def embed(prepare_ms: float, prepare: Callable[[], Awaitable[Sequence[object]]]) -> list[Computed]:
        return asyncio.run(as_coroutine(harness.engine.embed(harness.request(1, 10.0), prepare, prepare_ms)))

    with pytest.raises(Overloaded):
        embed(7.0, prepare)  # and S takes 4
    assert len(embed(5.0, prepared([1]))) == 1


def test_what_is_prepared_while_the_model_is_busy_costs_nothing(harness: Harness) -> None:
    async def ask() -> list[Computed]:
        harness.model.gate = threading.Event()
        first = asyncio.ensure_future(harness.embed([1], 1000.0))
        while not harness.engine._free_ms:
            await asyncio.sleep(0)
        second = asyncio.ensure_future(
            harness.engine.embed(harness.request(1, 24.0), prepared([2]), prepare_ms=19.0)  # XL runs for 20
        )
        await asyncio.sleep(0.01)
        harness.model.gate.set()
        await first
        return await second

    assert asyncio.run(ask())[0].level.name == "S"


@pytest.mark.parametrize("waited_ms", [0.0, 1.0])
def test_what_is_being_prepared_counts_as_long_as_it_is_expected(harness: Harness, waited_ms: float) -> None:
    """S takes 11 ms for the eight inputs of either request, so there is no time for both."""
    ready, prepared_too = asyncio.Event(), []

    async def first() -> Sequence[object]:
        await ready.wait()
        return [1] * 8

    async def second() -> Sequence[object]:
        prepared_too.append(True)
        return [2] * 8

    async def scenario() -> list[object]:
        one = asyncio.ensure_future(harness.engine.embed(harness.request(8, 20.0), first, prepare_ms=1.0))
        await asyncio.sleep(0)
        harness.clock.now_ms += waited_ms
        two = asyncio.ensure_future(harness.engine.embed(harness.request(8, 20.0), second))
        await asyncio.sleep(0)
        ready.set()
        return await asyncio.gather(one, two, return_exceptions=True)

    one, two = asyncio.run(scenario())
    is_counted = waited_ms < 1.0
    assert bool(prepared_too) is not is_counted
    assert [isinstance(answer, Overloaded) for answer in (one, two)] == [not is_counted, is_counted]


def test_a_refused_request_is_never_prepared(front: Front) -> None:
    harness = Harness(front, max_waiting_items=2)

    async def prepare() -> Sequence[object]:
        raise AssertionError("decoded a request that was refused")

    with pytest.raises(Overloaded):
        asyncio.run(as_coroutine(harness.engine.embed(harness.request(3, 1000.0), prepare)))


def test_time_lost_before_the_queue_counts(harness: Harness) -> None:
    async def slow() -> Sequence[object]:
        harness.clock.now_ms += 7.0
        return [1]

    with pytest.raises(Overloaded, match=r"3\.0 of 10 ms are left"):
        asyncio.run(as_coroutine(harness.engine.embed(harness.request(1, 10.0), slow)))
    assert harness.model.batches == []


def test_a_deadline_that_passed_before_arrival_is_exceeded(harness: Harness) -> None:
    request = Request(("image",), Slo(latency_ms=50.0), 0.0, -2.0)
    with pytest.raises(DeadlineExceeded) as raised:
        asyncio.run(as_coroutine(harness.engine.embed(request, prepared([1]))))
    assert raised.value.late_ms == 2.0


def test_work_that_expired_while_the_model_was_busy_is_not_computed(harness: Harness) -> None:
    async def scenario() -> list[object]:
        harness.model.slowdown = 10.0  # the table promises 20 ms, the batch takes 200
        busy = asyncio.ensure_future(as_coroutine(harness.embed([1], 21.0)))
        await asyncio.sleep(0)
        waiting = asyncio.ensure_future(as_coroutine(harness.embed([2], 100.0)))
        return await asyncio.gather(busy, waiting, return_exceptions=True)

    harness.model.gate = threading.Event()
    timer = threading.Timer(0.2, harness.model.gate.set)
    timer.start()
    first, second = asyncio.run(scenario())
    assert isinstance(first, list)
    assert isinstance(second, DeadlineExceeded)
    assert [inputs for _, _, inputs in harness.model.batches] == [[1]]


def test_a_cancelled_caller_frees_its_places(front: Front) -> None:
    harness = Harness(front, max_waiting_items=2)
    harness.model.gate = threading.Event()

    async def scenario() -> None:
        running = asyncio.ensure_future(as_coroutine(harness.embed([0], 1000.0)))
        await asyncio.sleep(0.05)  # it is in the model now
        leaving = asyncio.ensure_future(as_coroutine(harness.embed([1, 2], 1000.0)))
        await asyncio.sleep(0.05)
        assert (harness.engine.num_waiting, harness.engine.num_accepted) == (2, 3)
        with pytest.raises(Overloaded):
            await harness.embed([3], 1000.0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert (harness.engine.num_waiting, harness.engine.num_accepted) == (0, 1)
        staying = asyncio.ensure_future(as_coroutine(harness.embed([3], 1000.0)))
        await asyncio.sleep(0.05)
        harness.model.gate.set()  # type: ignore[union-attr]
        await asyncio.gather(running, staying)

    asyncio.run(scenario())
    assert [inputs for _, _, inputs in harness.model.batches] == [[0], [3]]


def test_a_model_that_fails_fails_its_batch_and_serves_the_next(front: Front) -> None:
    harness = Harness(front)

    async def scenario() -> list[Computed]:
        with pytest.raises(TypeError):
            await harness.engine.embed(harness.request(1, 1000.0), prepared([object()]))
        return await harness.embed([5], 1000.0)

    (found,) = asyncio.run(scenario())
    assert found.batch_size == 1


class BrokenOnce(LookaheadPolicy):
    """Raises in its first decision."""

    num_decisions = 0

    def decide(self, queue: Sequence[Work], now_ms: float, costs: Costs) -> Run | Refuse:
        self.num_decisions += 1
        if self.num_decisions == 1:
            raise ZeroDivisionError
        return super().decide(queue, now_ms, costs)


def test_a_policy_that_fails_leaves_nobody_waiting(front: Front) -> None:
    harness = Harness(front, policy=BrokenOnce())

    async def scenario() -> list[Computed]:
        with pytest.raises(ZeroDivisionError):
            await harness.embed([1], 1000.0)
        return await harness.embed([2], 1000.0)

    (found,) = asyncio.run(scenario())
    assert found.level.name == "XL"


def test_one_broken_input_frees_the_places_of_its_request(front: Front) -> None:
    harness = Harness(front, max_waiting_items=2)

    async def broken() -> Sequence[object]:
        raise InvalidRequest("inputs[1].image", "is not an image")

    async def scenario() -> list[Computed]:
        with pytest.raises(InvalidRequest):
            await harness.engine.embed(harness.request(2, 1000.0), broken)
        return await harness.embed([1, 2], 1000.0)

    assert len(asyncio.run(scenario())) == 2


async def as_coroutine(call: Awaitable[list[Computed]]) -> list[Computed]:
    return await call


def test_a_batch_that_hangs_is_stuck_once_its_allowance_is_used_up(front: Front) -> None:
    clock = FakeClock()
    harness = Harness(front, watchdog=Watchdog(floor_s=5.0, clock=lambda: clock.now_ms / 1000))
    harness.model.gate = threading.Event()

    async def scenario() -> list[bool]:
        call = asyncio.ensure_future(harness.embed([1], 1000.0))
        while harness.engine.watchdog._limit_s is None:
            await asyncio.sleep(0.001)
        early = harness.engine.watchdog.is_stuck
        clock.now_ms = 5_001.0
        late = harness.engine.watchdog.is_stuck
        assert harness.model.gate is not None
        harness.model.gate.set()
        await call
        return [early, late, harness.engine.watchdog.is_stuck]

    assert asyncio.run(scenario()) == [False, True, False]


def test_nobody_waits_for_an_engine_that_is_abandoned(harness: Harness) -> None:
    harness.model.gate = threading.Event()

    async def scenario() -> list[object]:
        calls = [asyncio.ensure_future(harness.embed([number], 60_000.0)) for number in range(3)]
        while len(harness.engine._pending) < 3:
            await asyncio.sleep(0)
        harness.engine.abandon(ConnectionError("gone"))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert harness.model.gate is not None
        harness.model.gate.set()
        return [type(outcome) for outcome in outcomes]

    assert asyncio.run(scenario()) == [ConnectionError] * 3
    assert harness.engine.num_waiting == 0
