"""Places, turns and ends of sequences whose steps are written by the tests, on a clock of theirs."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from elastic.errors import DeadlineExceeded, Overloaded, ServerUnavailable, SloInfeasible
from elastic.lm.generate import Step
from elastic.serve.generation.choice import Option, TokenSlo
from elastic.serve.generation.engine import Engine, Job, Running
from elastic.submodel import Submodel
from tests.serve.generation.conftest import Written, a_job, a_step

S, XL = Submodel((8, 8)), Submodel((64, 64))
OPTIONS = [Option(S, "S", 4.0, 10.0), Option(XL, "XL", 3.0, 40.0)]


class Clock:
    """Stands still between steps, which take the milliseconds that their submodel is said to take."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms


class Taking(Written):
    """Steps that let time pass."""

    def __init__(self, results: Sequence[Step | Exception], clock: Clock, ms: float) -> None:
        super().__init__(results)
        self._clock, self._ms = clock, ms

    def __next__(self) -> Step:
        self._clock.now_ms += self._ms
        return super().__next__()


def one_token_each(clock: Clock) -> Callable[[Job, Submodel], Written]:
    def start(job: Job, submodel: Submodel) -> Written:
        count = job.max_new_tokens
        steps = [a_step([token], "length" if token == count - 1 else None) for token in range(count)]
        return Taking(steps, clock, 40.0 if submodel == XL else 10.0)

    return start


def run(scenario: Callable[[Engine, Clock], Awaitable[None]], start: object = None, **settings: int) -> None:
    async def main() -> None:
        clock = Clock()
        engine = Engine(OPTIONS, start or one_token_each(clock), clock=clock, **settings)  # type: ignore[arg-type]
        try:
            await asyncio.wait_for(scenario(engine, clock), 30)
        finally:
            engine.close()

    asyncio.run(main())


async def tokens_of(running: Running) -> list[int]:
    return [token async for step in running.steps() for token in step.tokens[0]]


def test_a_sequence_brings_its_tokens_and_frees_its_place() -> None:
    async def scenario(engine: Engine, clock: Clock) -> None:
        with engine.place(a_job()) as running:
            assert engine.num_running == 1
            assert await tokens_of(running) == [0, 1, 2, 3]
            assert engine.num_running == 0  # when its last token is there, not when its reader is done
        assert (running.first_token_ms, running.last_token_ms, running.token_ms) == (40.0, 160.0, 40.0)
        assert running.slo_met

    run(scenario)


def test_tokens_of_the_first_step_do_not_count_for_the_time_per_token() -> None:
    def start(job: Job, submodel: Submodel) -> Written:
        return Taking([a_step([1, 2, 3]), a_step([4, 5], "length")], clocks[0], 30.0)

    clocks: list[Clock] = []

    async def scenario(engine: Engine, clock: Clock) -> None:
        clocks.append(clock)
        with engine.place(a_job()) as running:
            await tokens_of(running)
        assert running.token_ms == 15.0

    run(scenario, start)


def test_the_objective_decides_the_submodel_and_is_told_apart_from_what_runs() -> None:
    async def scenario(engine: Engine, clock: Clock) -> None:
        with engine.place(a_job(slo=TokenSlo(50.0))) as first:
            assert first.choice.option.name == "XL"
            with pytest.raises(Overloaded, match="1 sequences hold 80% of the model's time"):
                engine.place(a_job(slo=TokenSlo(50.0))).__enter__()
            with pytest.raises(SloInfeasible):
                engine.place(a_job(slo=TokenSlo(11.0))).__enter__()
            with engine.place(a_job()) as second:  # asks for nothing
                assert second.num_sequences == 2

    run(scenario)


def test_no_more_sequences_than_places() -> None:
    async def scenario(engine: Engine, clock: Clock) -> None:
        with engine.place(a_job(max_new_tokens=3)) as running:
            with pytest.raises(Overloaded, match="hold all places") as refused:
                engine.place(a_job()).__enter__()
            assert refused.value.retry_after_ms == 120.0  # three tokens at 40 ms
            await tokens_of(running)
            with engine.place(a_job()):
                pass

    run(scenario, max_sequences=1)


def test_sequences_take_turns() -> None:
    async def scenario(engine: Engine, clock: Clock) -> None:
        with engine.place(a_job()) as first, engine.place(a_job()) as second:
            await asyncio.gather(tokens_of(first), tokens_of(second))
        assert (first.last_token_ms, second.last_token_ms) == (280.0, 320.0)
        assert first.token_ms == second.token_ms == 80.0

    run(scenario)


def test_a_tight_objective_is_kept_beside_sequences_without_one() -> None:
    async def scenario(engine: Engine, clock: Clock) -> None:
        with (
            engine.place(a_job(max_new_tokens=20)) as one,
            engine.place(a_job(max_new_tokens=20)) as two,
            engine.place(a_job(max_new_tokens=20, slo=TokenSlo(48.0))) as tight,
        ):
            await asyncio.gather(tokens_of(one), tokens_of(two), tokens_of(tight))
        assert tight.choice.option.name == "XL"
        assert tight.token_ms <= 48.0 and tight.slo_met
        assert one.token_ms > 48.0

    run(scenario)


def test_a_reader_that_leaves_frees_the_place_within_a_step() -> None:
    counts: list[int] = []

    async def scenario(engine: Engine, clock: Clock) -> None:
        with engine.place(a_job(max_new_tokens=1_000)) as running:
            async for _ in running.steps():
                break
        assert engine.num_running == 0
        counts.append(running.num_tokens)
        with engine.place(a_job()) as other:
            await tokens_of(other)
        assert running.num_tokens == counts[0]

    run(scenario, max_sequences=1)


def test_a_deadline_ends_a_sequence_where_it_is() -> None:
    async def scenario(engine: Engine, clock: Clock) -> None:
        with engine.place(a_job(max_new_tokens=100, deadline_ms=90.0)) as running:
            with pytest.raises(DeadlineExceeded) as raised:
                await tokens_of(running)
            assert (running.num_tokens, raised.value.budget_ms, raised.value.late_ms) == (3, 90.0, 30.0)
            assert engine.num_running == 0
        with pytest.raises(DeadlineExceeded):
            engine.place(a_job(deadline_ms=90.0)).__enter__()

    run(scenario)


def test_a_step_that_fails_ends_its_sequence_and_no_other() -> None:
    def start(job: Job, submodel: Submodel) -> Written:
        if job.max_new_tokens == 1:
            return Written([ValueError("broken")])
        return Written([a_step([1]), a_step([2], "length")])

    async def scenario(engine: Engine, clock: Clock) -> None:
        with engine.place(a_job(max_new_tokens=1)) as bad, engine.place(a_job()) as good:
            found = await asyncio.gather(tokens_of(bad), tokens_of(good), return_exceptions=True)
        assert isinstance(found[0], ValueError)
        assert found[1] == [1, 2]

    run(scenario, start)


def test_a_model_that_cannot_be_relied_on_lets_nobody_wait() -> None:
    release = threading.Event()

    class Stuck(Written):
        def __next__(self) -> Step:
            release.wait(30)
            return super().__next__()

    async def scenario(engine: Engine, clock: Clock) -> None:
        with engine.place(a_job()) as running:
            reading = asyncio.ensure_future(tokens_of(running))
            await asyncio.sleep(0.01)
            engine.abandon(ServerUnavailable("replica", "is stuck", "call again"))
            with pytest.raises(ServerUnavailable):
                await reading
        release.set()

    run(scenario, lambda job, submodel: Stuck([a_step([1], "length")]))


def test_the_canary_runs_between_steps_in_the_models_own_thread() -> None:
    threads: set[int] = set()

    def look() -> bool:
        threads.add(threading.get_ident())
        return True

    async def scenario(engine: Engine, clock: Clock) -> None:
        with engine.place(a_job(max_new_tokens=50)) as running:
            found = await asyncio.gather(tokens_of(running), engine.run_in_model_thread(look))
        assert found[1] is True

    run(scenario)
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_times_are_learned_from_steps_but_not_from_those_that_read_a_prompt() -> None:
    def start(job: Job, submodel: Submodel) -> Written:
        drafted = [a_step([2, 3], drafted=2, accepted=1)] * 400
        return Taking([a_step([1]), *drafted, a_step([4], "length", drafted=1)], clocks[0], 30.0)

    clocks: list[Clock] = []

    async def scenario(engine: Engine, clock: Clock) -> None:
        clocks.append(clock)
        job = a_job(draft=S, max_new_tokens=802)
        with engine.place(job) as running:
            await tokens_of(running)
        assert running.drafts
        drafted = {option.name: option.token_ms for option in engine.options(job)}
        assert drafted["XL"] == pytest.approx(15.0, abs=1.0)
        assert {option.name: option.token_ms for option in engine.options()} == {"S": 10.0, "XL": 40.0}

    run(scenario, start)


def test_a_draft_helps_only_a_larger_target() -> None:
    assert a_job(draft=S).drafts_for(XL)
    assert not a_job(draft=S).drafts_for(S)
    assert not a_job(draft=XL).drafts_for(S)
    assert not a_job().drafts_for(XL)


def test_whoever_listens_hears_of_every_step_with_the_time_since_the_last() -> None:
    heard: list[float] = []

    async def main() -> None:
        clock = Clock()
        engine = Engine(OPTIONS, one_token_each(clock), clock=clock, on_step=lambda *step: heard.append(step[2]))  # type: ignore[arg-type]
        clock.now_ms = 5.0  # arrived at 0
        with engine.place(a_job()) as running:
            await tokens_of(running)
        engine.close()

    asyncio.run(main())
    assert heard == [45.0, 40.0, 40.0, 40.0]
