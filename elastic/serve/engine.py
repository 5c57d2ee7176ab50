"""One model thread, one queue, one policy: inputs in, embeddings with their explanation out.

`Engine.embed` checks admission before anything expensive happens, prepares the inputs (decoding), queues them and
waits. One task per engine repeats: drop what expired, ask the policy, compute one batch in a single-thread
executor, hand out the results. The event loop stays free while the model runs. No torch, no ray: the model is a
callable, the clock is injected.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from elastic.errors import DeadlineExceeded, InvalidRequest, Overloaded, SloInfeasible
from elastic.profile.tables import Modality
from elastic.serve.batching import Correction, Costs, EdfQueue, Front, Level, Work, merged
from elastic.serve.policies.lookahead import LookaheadPolicy
from elastic.serve.policy import Limit, Policy, Refuse, Run, floor_plan
from elastic.serve.watchdog import Watchdog
from elastic.submodel import Slo, Submodel

COSTS_MS = 10.0
"""How long predictions stand while no batch ends: a correction's half-life is thousands of times longer."""

Compute = Callable[[Modality, Submodel, Sequence[object]], np.ndarray]
"""Un-cut embeddings `[inputs, full width]` of prepared inputs; runs in the model thread."""


@dataclass(frozen=True, slots=True)
class Request:
    """Inputs that are answered together, or not at all."""

    modalities: tuple[Modality, ...]
    """Of each input."""
    slo: Slo
    arrived_ms: float
    deadline_ms: float
    """On the engine's clock."""


@dataclass(frozen=True, slots=True)
class Computed:
    """One embedding and how it came about."""

    embedding: np.ndarray
    """Of full width, as the model gave it: any narrower one is `elastic.quantise.cut` from it."""
    embed_dim: int
    """The width that was decided."""
    modality: Modality
    level: Level
    quality: float
    queue_ms: float
    compute_ms: float
    predicted_ms: float
    preprocess_ms: float
    batch_size: int
    limit: Limit


@dataclass(frozen=True, slots=True)
class RanBatch:
    """What the model thread has just computed."""

    run: Run
    level: Level
    compute_ms: float


@dataclass(slots=True)
class _Pending:
    work: Work
    payload: object
    slo: Slo
    queued_ms: float
    preprocess_ms: float
    done: asyncio.Future[Computed]


@dataclass(frozen=True, slots=True, eq=False)
class _Arriving:
    """Work that is not in the queue yet."""

    works: Sequence[Work]
    ready_ms: float
    """When its inputs are expected to be prepared."""

    def seen_from(self, free_ms: float) -> Sequence[Work]:
        """The same for a model that is free from then on: what is ready later has that much less time."""
        lost_ms = self.ready_ms - free_ms
        return self.works if lost_ms <= 0 else [replace(w, deadline_ms=w.deadline_ms - lost_ms) for w in self.works]


def monotonic_ms() -> float:
    """Milliseconds of the system's monotonic clock."""
    return time.monotonic() * 1000.0


class Engine:
    """Runs one model thread for as long as its event loop lives."""

    def __init__(
        self,
        fronts: Mapping[Modality, Front],
        compute: Compute,
        *,
        policy: Policy | None = None,
        max_waiting_items: int = 512,
        reply_margin_ms: float = 1.0,
        clock: Callable[[], float] = monotonic_ms,
        watchdog: Watchdog | None = None,
        on_batch: Callable[[RanBatch], None] = lambda batch: None,
    ) -> None:
        self.fronts = fronts
        self.correction = Correction()
        self.clock = clock
        self.watchdog = watchdog or Watchdog()
        self._compute = compute
        self._on_batch = on_batch
        self._policy = policy or LookaheadPolicy()
        self._reply_margin_ms = reply_margin_ms
        self._queue = EdfQueue(max_waiting_items)
        self._pending: dict[int, _Pending] = {}
        self._ids = itertools.count()
        self._preparing: set[_Arriving] = set()
        self._free_ms = 0.0
        self._costs_now, self._costs_until_ms = Costs.at(0.0, fronts, self.correction), 0.0
        self._as_profiled = self._costs_now.slower(self._policy.headroom(clock()))
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Inputs that hold a place: waiting for the model, or being decoded for it."""
        return len(self._queue) + self._num_preparing

    @property
    def num_accepted(self) -> int:
        """Inputs that wait, are decoded or computed."""
        return len(self._pending) + self._num_preparing

    @property
    def _num_preparing(self) -> int:
        return sum(len(other.works) for other in self._preparing)

    def costs(self) -> Costs:
        """Corrected predictions now."""
        now_ms = self.clock()
        if now_ms >= self._costs_until_ms:
            self._costs_now, self._costs_until_ms = Costs.at(now_ms, self.fronts, self.correction), now_ms + COSTS_MS
        return self._costs_now

    async def embed(
        self, request: Request, prepare: Callable[[], Awaitable[Sequence[object]]], prepare_ms: float = 0.0
    ) -> list[Computed]:
        """Embeddings of all inputs, in order.

        `prepare` yields the model's inputs, and is expected to take `prepare_ms`; it is not called for a request that
        is refused. When the caller is cancelled, every place that the request holds is free again.

        Raises:
            InvalidRequest: a modality this engine does not serve.
            SloInfeasible: not even an idle engine could do it.
            Overloaded: refused, because it, or something admitted before it, would be late.
            DeadlineExceeded: its deadline passed before its turn came.
        """
        works = self._works(request)
        self._check_feasible(request, works)
        self._policy.notice(works)
        arriving = _Arriving(works, self.clock() + prepare_ms)
        self._admit(request, arriving, self._preparing)
        self._preparing.add(arriving)
        try:
            payloads = await prepare()
        finally:
            self._preparing.remove(arriving)
        self._admit(request, _Arriving(works, self.clock()))
        now_ms, future = self.clock(), asyncio.get_running_loop().create_future
        return await self._wait_for(
            [
                _Pending(work, payload, request.slo, now_ms, now_ms - request.arrived_ms, future())
                for work, payload in zip(works, payloads, strict=True)
            ]
        )

    async def run_in_model_thread(self, call: Callable[[], bool]) -> bool:
        """The result of a call that must not run beside the model (the health check's canary)."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._watched, call)

    def abandon(self, error: BaseException) -> None:
        """Let nobody wait any longer: everything that waits or is computed fails with `error`."""
        for pending in list(self._pending.values()):
            self._fail(pending.work, error)

    def close(self) -> None:
        """Stop computing; whoever still waits is cancelled."""
        if self._task is not None:
            self._task.cancel()
        for pending in self._pending.values():
            pending.done.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _works(self, request: Request) -> list[Work]:
        floors = {modality: self._floor(modality, request.slo) for modality in dict.fromkeys(request.modalities)}
        return [
            Work(
                id=next(self._ids),
                modality=modality,
                deadline_ms=request.deadline_ms - self._reply_margin_ms,
                budget_ms=request.slo.latency_ms,
                floor=floors[modality],
                priority=request.slo.priority,
                arrived_ms=request.arrived_ms,
            )
            for modality in request.modalities
        ]

    def _floor(self, modality: Modality, slo: Slo) -> int:
        front = self.fronts.get(modality)
        if front is None:
            raise InvalidRequest("inputs", f"this model does not embed {modality}s")
        widths = front.levels[-1].quality
        if not any(slo.allows(width) for width in widths):
            field = "slo.embed_dim" if slo.embed_dim is not None else "slo.embed_dim_range"
            raise InvalidRequest(field, f"holds none of the trained widths {sorted(widths)}")
        floor = front.floor(slo)
        if floor is None:
            top = front.levels[-1]
            best = f"the most accurate ({top.name}) reaches {top.quality[top.width(slo)]:.3f}"
            raise SloInfeasible(f"min_quality={slo.min_quality:g}", best, "lower min_quality")
        return floor

    def _admit(self, request: Request, arriving: _Arriving, preparing: Collection[_Arriving] = ()) -> None:
        """Refuse what cannot be answered in time beside what waits and is prepared, and say why it cannot."""
        now_ms = self.clock()
        if now_ms >= request.deadline_ms:
            raise DeadlineExceeded(request.slo.latency_ms, now_ms - request.deadline_ms)
        costs, free_ms = self.costs(), max(now_ms, self._free_ms)
        self._queue.check_room(len(arriving.works) + self._num_preparing, max(1.0, self._free_ms - now_ms))
        # What takes longer to prepare than expected, such as a slow URL, must not be in the way of others.
        soon = [work for other in preparing if other.ready_ms > now_ms for work in other.seen_from(free_ms)]
        waiting = merged(self._queue.view(), soon) if soon else self._queue.view()
        try:
            # What is prepared too late to be computed would only keep the threads from what is not.
            self._policy.admit(waiting, arriving.seen_from(free_ms), free_ms, costs)
        except Overloaded as error:
            if waiting or max(free_ms, arriving.ready_ms) > now_ms:
                raise
            # An idle server, but too little of the budget is left (it was spent on the way here, or decoding).
            needed_ms = floor_plan(arriving.works, now_ms, costs).finish_ms - now_ms
            left_ms = request.deadline_ms - now_ms
            reason = f"{left_ms:.1f} of {request.slo.latency_ms:g} ms are left, the model needs {needed_ms:.1f} ms"
            raise Overloaded(reason, error.retry_after_ms) from error

    def _check_feasible(self, request: Request, works: Sequence[Work]) -> None:
        """Refuse what even an idle engine, as profiled, could not do inside the whole budget."""
        table = self._as_profiled
        budget_ms = request.slo.latency_ms - self._reply_margin_ms
        fresh = [replace(work, deadline_ms=budget_ms) for work in works]
        plan = floor_plan(fresh, 0.0, table)
        if plan.late is not None:
            fastest = table.levels(works[0].modality)[table.cheapest[works[0].modality][works[0].floor]]
            best = (
                f"the fastest allowed ({fastest.name}) needs {plan.finish_ms:.2f} ms for {len(works)} input(s) "
                f"and {self._reply_margin_ms:g} ms are kept for the reply"
            )
            raise SloInfeasible(f"latency_ms={request.slo.latency_ms:g}", best, "raise latency_ms or send fewer inputs")

    async def _wait_for(self, pendings: Sequence[_Pending]) -> list[Computed]:
        self._start()
        self._queue.add([pending.work for pending in pendings])
        self._pending |= {pending.work.id: pending for pending in pendings}
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(pending.done for pending in pendings)))
        finally:
            # Answered, failed or abandoned: nothing of this request may stay behind.
            self._queue.remove([pending.work for pending in pendings])
            for pending in pendings:
                self._pending.pop(pending.work.id, None)
                pending.done.cancel()

    def _start(self) -> None:
        # Here and not in the constructor, which may run before the loop that serves.
        if self._task is None or self._task.done():
            self._arrived = asyncio.Event()
            self._task = asyncio.get_running_loop().create_task(self._serve(), name="engine")
            self._task.add_done_callback(self._give_up)

    def _give_up(self, ended: asyncio.Task[None]) -> None:
        """Let nobody wait for a task that ended; the next request starts another."""
        error = asyncio.CancelledError() if ended.cancelled() else ended.exception()
        self.abandon(error or asyncio.CancelledError())

    async def _serve(self) -> None:
        while True:
            if not len(self._queue):
                self._arrived.clear()
                await self._arrived.wait()
            for work in self._queue.expire(self.clock()):
                self._fail(work, DeadlineExceeded(work.budget_ms, self.clock() - work.deadline_ms))
            if len(self._queue):
                await self._step()

    async def _step(self) -> None:
        now_ms = self.clock()
        costs = self.costs()
        decision = self._policy.decide(self._queue.view(), now_ms, costs)
        self._queue.remove(decision.works)
        if isinstance(decision, Refuse):
            for work in decision.works:
                reason = f"{work.deadline_ms - now_ms:.1f} ms are left of {work.budget_ms:g}, the model needs"
                self._fail(work, Overloaded(f"{reason} {costs.least_ms(work):.1f} ms", costs.least_ms(work)))
            return
        self._free_ms = now_ms + decision.predicted_ms
        await self._run(decision, costs)

    async def _run(self, run: Run, costs: Costs) -> None:
        members = [pending for work in run.works if (pending := self._pending.get(work.id)) is not None]
        level = costs.levels(run.works[0].modality)[run.level]
        started_ms = self.clock()
        call = asyncio.get_running_loop().run_in_executor(
            self._thread, self._timed, run, level.submodel, [member.payload for member in members]
        )
        await asyncio.wait([call])
        self._free_ms = self.clock()
        error = call.exception()
        if error is not None:
            for member in members:
                self._fail(member.work, error)
            return
        embeddings, compute_ms = call.result()
        self._learn(run, level, costs, compute_ms)
        self._policy.observe(run, self._free_ms)
        self._on_batch(RanBatch(run, level, compute_ms))
        for member, embedding in zip(members, embeddings, strict=True):
            if not member.done.done():
                member.done.set_result(self._explain(run, level, member, embedding, started_ms, compute_ms))

    def _timed(self, run: Run, submodel: Submodel, payloads: list[object]) -> tuple[np.ndarray, float]:
        started_ms = self.clock()
        with self.watchdog.watch(run.predicted_ms / 1000):
            embeddings = self._compute(run.works[0].modality, submodel, payloads)
        return embeddings, self.clock() - started_ms

    def _watched(self, call: Callable[[], bool]) -> bool:
        with self.watchdog.watch(0.0):
            return call()

    def _learn(self, run: Run, level: Level, costs: Costs, compute_ms: float) -> None:
        modality = run.works[0].modality
        table_ms = level.batch_ms[len(run.works) - 1]
        self.correction.observe(modality, level.submodel, compute_ms / table_ms, self.clock())
        self._costs_until_ms = 0.0

    def _explain(
        self, run: Run, level: Level, member: _Pending, embedding: np.ndarray, started_ms: float, compute_ms: float
    ) -> Computed:
        width = level.width(member.slo)
        return Computed(
            embedding=embedding,
            embed_dim=width,
            modality=member.work.modality,
            level=level,
            quality=level.quality[width],
            queue_ms=started_ms - member.queued_ms,
            compute_ms=compute_ms,
            predicted_ms=run.predicted_ms,
            preprocess_ms=member.preprocess_ms,
            batch_size=len(run.works),
            limit=run.limit,
        )

    def _fail(self, work: Work, error: BaseException) -> None:
        pending = self._pending.get(work.id)
        if pending is None or pending.done.done():
            return
        if isinstance(error, asyncio.CancelledError):
            pending.done.cancel()
        else:
            pending.done.set_exception(error)
