"""One model thread and the sequences that it continues: a place each, a step at a time, in turns.

    with engine.place(job) as sequence:         # chosen here, or refused
        async for step in sequence.steps():
            ...

A step is one round of `elastic.lm.generate` for one sequence: a token, or what a draft and its verification bring.
Sequences are not batched, so what one of them is answered does not depend on who is served beside it, to the last bit;
the price is that weights are read once per sequence and not once for all. Leaving the block frees the place, and with
it the sequence's keys and values, within one step. No ray; clock and what starts a sequence come from outside.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import inf
from typing import TypeVar

from elastic.errors import DeadlineExceeded, Overloaded
from elastic.lm.generate import Generation, Step
from elastic.lm.sampling import Sampling
from elastic.serve.engine import monotonic_ms
from elastic.serve.generation.choice import Choice, Option, Share, TokenSlo, TokenTimes, choose
from elastic.serve.generation.turns import Turn, next_turn
from elastic.serve.watchdog import Watchdog
from elastic.submodel import Submodel

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A prompt to continue, and how."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...]
    """Strings before which the text ends; whoever reads the steps looks for them."""
    slo: TokenSlo
    draft: Submodel | None
    """What may draft for a larger one; None: nothing."""
    arrived_ms: float
    deadline_ms: float
    """On the engine's clock; infinite if there is none."""

    def drafts_for(self, target: Submodel) -> bool:
        """Whether a draft may help a target: it must be smaller, or it saves nothing."""
        return self.draft is not None and sum(self.draft.ffn_dims) < sum(target.ffn_dims)


Start = Callable[[Job, Submodel], Generation]
"""Makes the steps of a job at a submodel; nothing is computed before the first is asked for."""


class Running:
    """A sequence that holds a place."""

    def __init__(self, job: Job, choice: Choice, generation: Generation, num_sequences: int) -> None:
        self.job, self.choice, self.generation = job, choice, generation
        self.num_sequences = num_sequences
        """Sequences that held a place when this one began, itself included."""
        self.turn = Turn(step_ms=choice.option.token_ms)
        self.num_tokens = 0
        self.first_token_ms = inf
        self.last_token_ms = inf
        """When they came, on the engine's clock; the first step may bring several at once."""
        self.gamma = 0
        """Tokens of the latest draft."""
        self._num_first = 0
        self._results: asyncio.Queue[Step | BaseException] = asyncio.Queue()

    @property
    def drafts(self) -> bool:
        """Whether a draft may help it."""
        return self.job.drafts_for(self.choice.option.submodel)

    @property
    def token_ms(self) -> float:
        """Measured mean time per token after those of the first step; 0 before there is one."""
        later = self.num_tokens - self._num_first
        return (self.last_token_ms - self.first_token_ms) / later if later > 0 else 0.0

    @property
    def slo_met(self) -> bool:
        """Whether tokens came as fast as was asked for."""
        return self.token_ms <= self.job.slo.token_ms

    async def steps(self) -> AsyncGenerator[Step, None]:
        """What every step brings, until the sequence ends.

        Raises:
            DeadlineExceeded: its deadline came before that.
            ServerUnavailable: the model cannot be relied on any more.
        """
        is_last = False
        while not is_last:
            result = await self._results.get()
            if isinstance(result, BaseException):
                raise result
            is_last = result.finished[0] is not None
            yield result

    def take(self, result: Step | BaseException, now_ms: float) -> None:
        """Hand on what became of a step."""
        if isinstance(result, Step):
            self.num_tokens += len(result.tokens[0])
            self.last_token_ms = now_ms
            if self.first_token_ms == inf:
                self.first_token_ms, self._num_first = now_ms, self.num_tokens
            self.gamma = result.num_draft_tokens[0] or self.gamma
            behind = self.num_tokens - self._num_first + 1
            self.turn.due_ms = self.first_token_ms + behind * self.job.slo.token_ms
        self._results.put_nowait(result)


class Engine:
    """Runs one model thread for as long as its event loop lives."""

    def __init__(
        self,
        options: Sequence[Option],
        start: Start,
        *,
        max_sequences: int = 8,
        clock: Callable[[], float] = monotonic_ms,
        watchdog: Watchdog | None = None,
        on_step: Callable[[Running, Step, float], None] = lambda running, step, gap_ms: None,
    ) -> None:
        """Choose from `options`, ascending in quality."""
        self.clock, self.watchdog = clock, watchdog or Watchdog()
        self.times = TokenTimes({option.submodel: option.token_ms for option in options})
        self._options, self._start, self._max_sequences, self._on_step = options, start, max_sequences, on_step
        self._running: list[Running] = []
        self._turns = itertools.count()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    @property
    def num_running(self) -> int:
        """Sequences that hold a place."""
        return len(self._running)

    def options(self, job: Job | None = None) -> list[Option]:
        """What can be chosen, with times as expected now of this job, or of one that drafts nothing."""
        return [
            replace(option, token_ms=self.times.token_ms(submodel, job is not None and job.drafts_for(submodel)))
            for option in self._options
            for submodel in [option.submodel]
        ]

    @contextmanager
    def place(self, job: Job) -> Iterator[Running]:
        """A place for a sequence until the block ends; its steps begin at once.

        Raises:
            InvalidRequest: the prompt cannot be continued.
            SloInfeasible: not even an idle engine could keep its objective.
            Overloaded: it could not be kept beside what runs, or no place is free.
            DeadlineExceeded: its deadline has passed.
        """
        running = self._admit(job)
        self._running.append(running)
        self._wake()
        try:
            yield running
        finally:
            self._free(running)

    async def run_in_model_thread(self, call: Callable[[], bool]) -> bool:
        """The result of a call that must not run beside the model (the health check's canary)."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._watched, 0.0, call)

    def abandon(self, error: BaseException) -> None:
        """Let nobody wait any longer: everything that runs fails with `error`."""
        for running in list(self._running):
            self._end(running, error)

    def close(self) -> None:
        """Stop computing; whoever still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
        self.abandon(asyncio.CancelledError())
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _admit(self, job: Job) -> Running:
        self._check_deadline(job)
        retry_after_ms = self._first_end_ms()
        choice = choose(self.options(job), job.slo, self._shares(), retry_after_ms)
        if len(self._running) >= self._max_sequences:
            raise Overloaded(f"{len(self._running)} sequences hold all places", retry_after_ms)
        return Running(job, choice, self._start(job, choice.option.submodel), len(self._running) + 1)

    def _shares(self) -> list[Share]:
        return [
            Share(self.times.token_ms(running.choice.option.submodel, running.drafts), running.job.slo.token_ms)
            for running in self._running
        ]

    def _first_end_ms(self) -> float:
        """When the first of those that run will have all its tokens, if it goes on as now; 1 ms at least."""
        now_ms = self.clock()
        left = [
            (running.job.max_new_tokens - running.num_tokens) * (running.token_ms or running.choice.predicted_ms)
            for running in self._running
        ]
        until_deadline = [running.job.deadline_ms - now_ms for running in self._running]
        return max(1.0, min([*left, *until_deadline], default=1.0))

    def _wake(self) -> None:
        # The task is made here and not in the constructor, which may run before the loop that serves.
        if self._task is None or self._task.done():
            self._arrived = asyncio.Event()
            self._task = asyncio.get_running_loop().create_task(self._serve(), name="engine")
            self._task.add_done_callback(self._give_up)
        self._arrived.set()

    def _give_up(self, ended: asyncio.Task[None]) -> None:
        """Let nobody wait for a task that ended; the next request starts another."""
        error = asyncio.CancelledError() if ended.cancelled() else ended.exception()
        self.abandon(error or asyncio.CancelledError())

    async def _serve(self) -> None:
        while True:
            if not self._running:
                self._arrived.clear()
                await self._arrived.wait()
            for running in list(self._running):
                try:
                    self._check_deadline(running.job)
                except DeadlineExceeded as error:
                    self._end(running, error)
            if self._running:
                await self._step(self._running[next_turn([running.turn for running in self._running], self.clock())])

    async def _step(self, running: Running) -> None:
        reads_prompt = running.num_tokens == 0
        expected_ms = running.turn.step_ms * (len(running.job.prompt) if reads_prompt else 1)
        began_ms = self.clock()
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(self._thread, self._watched, expected_ms / 1000, running.generation.__next__)
        await asyncio.wait([call])
        now_ms = self.clock()
        running.turn.last = next(self._turns)
        error = call.exception()
        if error is not None:
            self._end(running, error)
            return
        step = call.result()
        if not reads_prompt:
            running.turn.step_ms = now_ms - began_ms
            submodel = running.choice.option.submodel
            counts = len(step.tokens[0]), step.num_draft_tokens[0]
            self.times.observe(submodel, running.drafts, now_ms - began_ms, *counts)
        if running not in self._running:  # its caller left meanwhile
            return
        before_ms = running.job.arrived_ms if reads_prompt else running.last_token_ms
        running.take(step, now_ms)
        self._on_step(running, step, now_ms - before_ms)
        if step.finished[0] is not None:
            self._free(running)

    def _check_deadline(self, job: Job) -> None:
        late_ms = self.clock() - job.deadline_ms
        if late_ms >= 0:
            raise DeadlineExceeded(job.deadline_ms - job.arrived_ms, late_ms)

    def _watched(self, expected_s: float, call: Callable[[], _T]) -> _T:
        with self.watchdog.watch(expected_s):
            return call()

    def _end(self, running: Running, error: BaseException) -> None:
        self._free(running)
        running.take(error, self.clock())

    def _free(self, running: Running) -> None:
        if running in self._running:
            self._running.remove(running)
