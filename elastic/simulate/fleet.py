"""A discrete-event simulation of replicas, each with the server's queue, policy and correction.

The clock is virtual: an hour of a thousand replicas takes as long as its events. Everything that decides is the code
that serves (`serve.batching`, `serve.policy`); what is modelled is the time of a batch (`Times`), the time that
an answer spends outside of the model (`overhead_ms`), and which replica a request goes to: of two drawn at random, the
one with less waiting, as Ray Serve routes. A replica that fails loses nothing: what it held is sent to others at once,
with the deadlines it had, as a client would that tries again. With `Scaling` the fleet follows the same policy as a
real one: replicas take a while to start, and finish what they hold before they leave.
"""

import heapq
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int

from elastic.errors import Overloaded
from elastic.profile.tables import Modality
from elastic.serve.batching import Correction, Costs, EdfQueue, Front, Work
from elastic.serve.policy import Policy, Refuse, Run
from elastic.simulate.scaling import History, Scaling, Watch
from elastic.simulate.service import Times


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A replica that dies, and comes back."""

    at_ms: float
    replica: int
    down_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """What serves."""

    fronts: Mapping[Modality, Front]
    times: Times
    policy: Callable[[], Policy]
    """Makes one per replica."""
    num_replicas: int = 1
    overhead_ms: float = 0.0
    """Of every answer, outside of the model; the server takes it off the budget, and so does this."""
    max_waiting: int = 512
    """Inputs that a replica lets wait."""
    failures: Sequence[Failure] = ()
    scaling: Scaling | None = None
    """Changes the number of replicas; none keeps it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """What is asked: one input each, in the order of arrival."""

    at_ms: Float[np.ndarray, " request"]
    slo_ms: Float[np.ndarray, " request"]
    modality: Sequence[Modality] | None = None
    """All images, if left out."""

    def works(self, overhead_ms: float) -> list[Work]:
        """As a server's queue knows them."""
        return [
            Work(
                id=number,
                modality="image" if self.modality is None else self.modality[number],
                deadline_ms=at + slo - overhead_ms,
                budget_ms=slo,
                arrived_ms=at,
            )
            for number, (at, slo) in enumerate(zip(self.at_ms.tolist(), self.slo_ms.tolist(), strict=True))
        ]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of every request."""

    latency_ms: Float[np.ndarray, " request"]
    """From arrival to answer; NaN for those that were never computed."""
    quality: Float[np.ndarray, " request"]
    """Of the level that answered; NaN likewise."""
    met: Bool[np.ndarray, " request"]
    """Answered within its objective."""
    refused: Bool[np.ndarray, " request"]
    """Told at once that it would be late."""
    dropped: Bool[np.ndarray, " request"]
    """Accepted, and then refused before its turn or left in the queue until its deadline had passed."""
    batch_sizes: Int[np.ndarray, " batch"]
    decision_us: Float[np.ndarray, " decision"]
    """Processor time of every decision of the policy on this machine."""
    history: History
    """How many replicas there were."""


class _Kind(IntEnum):
    DONE = 0  # before arrivals of the same moment: the model is free for them
    BACK = 1
    FAIL = 2
    SCALE = 3
    ARRIVE = 4


class _Stage(Enum):
    STARTING = "takes no requests yet"
    UP = "serves"
    DOWN = "has failed, and will be back"
    LEAVING = "finishes what it holds"
    GONE = "is no more"


@dataclass(slots=True)
class _Replica:
    policy: Policy
    queue: EdfQueue
    stage: _Stage = _Stage.UP
    up_ms: float = 0.0
    """When it came up."""
    correction: Correction = field(default_factory=Correction)
    running: Run | None = None
    began_ms: float = 0.0
    free_ms: float = 0.0
    """When the running batch is predicted to end."""
    lives: int = 0
    """Times it has failed: a batch that began in an earlier life never ends."""

    @property
    def load(self) -> int:
        return len(self.queue) + (len(self.running.works) if self.running else 0)


def simulate(fleet: Fleet, requests: Requests, seed: int = 0) -> Outcome:
    """Let a fleet answer requests. The same seed gives the same outcome, decision times aside."""
    return _Simulation(fleet, requests, seed).run()


class _Simulation:
    def __init__(self, fleet: Fleet, requests: Requests, seed: int) -> None:
        count = len(requests.at_ms)
        self._fleet, self._requests = fleet, requests
        self._works = requests.works(fleet.overhead_ms)
        self._rng = np.random.default_rng(seed)
        self._replicas = [self._new() for _ in range(fleet.num_replicas)]
        self._up = list(range(fleet.num_replicas))
        self._starting: list[int] = []
        self._held: list[Work] = []
        """What arrived while no replica was up, but one is to come."""
        self._history = History(fleet.num_replicas)
        self._watch = Watch(fleet.scaling, fleet.fronts, fleet.overhead_ms) if fleet.scaling else None
        self._events: list[tuple[float, _Kind, int, int, int]] = []
        self._order = itertools.count()
        self._finished_ms, self._quality = np.full(count, np.nan), np.full(count, np.nan)
        self._refused, self._dropped = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        self._batch_sizes: list[int] = []
        self._decision_us: list[float] = []

    def run(self) -> Outcome:
        self._schedule()
        while self._events:
            now_ms, kind, _, which, life = heapq.heappop(self._events)
            match kind:
                case _Kind.ARRIVE:
                    self._arrive(self._works[which], now_ms)
                case _Kind.DONE:
                    self._finish(which, life, now_ms)
                case _Kind.FAIL:
                    self._fail(which, now_ms)
                case _Kind.BACK:
                    self._come_up(which, now_ms)
                case _Kind.SCALE:
                    self._scale(now_ms)
        latency_ms = self._finished_ms + self._fleet.overhead_ms - self._requests.at_ms
        return Outcome(
            latency_ms=latency_ms,
            quality=self._quality,
            met=latency_ms <= self._requests.slo_ms + 1e-9,
            refused=self._refused,
            dropped=self._dropped,
            batch_sizes=np.array(self._batch_sizes, np.int64),
            decision_us=np.array(self._decision_us),
            history=self._history,
        )

    def _schedule(self) -> None:
        for number, at_ms in enumerate(self._requests.at_ms.tolist()):
            self._at(at_ms, _Kind.ARRIVE, number)
        for failure in self._fleet.failures:
            self._at(failure.at_ms, _Kind.FAIL, failure.replica)
            self._at(failure.at_ms + failure.down_ms, _Kind.BACK, failure.replica)
        if self._fleet.scaling:
            self._at(0.0, _Kind.SCALE, 0)

    def _at(self, ms: float, kind: _Kind, which: int, life: int = 0) -> None:
        heapq.heappush(self._events, (ms, kind, next(self._order), which, life))

    def _new(self, stage: _Stage = _Stage.UP) -> _Replica:
        return _Replica(self._fleet.policy(), EdfQueue(self._fleet.max_waiting), stage)

    def _arrive(self, work: Work, now_ms: float) -> None:
        if not self._up and self._watch:
            self._held.append(work)
            return
        number = self._route()
        if number is None:
            self._refuse(work, now_ms)
            return
        replica = self._replicas[number]
        try:
            replica.policy.notice([work])
            replica.queue.check_room(1, 1.0)
            costs = Costs.at(now_ms, self._fleet.fronts, replica.correction)
            replica.policy.admit(replica.queue.view(), [work], max(now_ms, replica.free_ms), costs)
        except Overloaded:
            self._refuse(work, now_ms)
            return
        replica.queue.add([work])
        if replica.running is None:
            self._start(number, now_ms)

    def _route(self) -> int | None:
        """The less loaded of two replicas that are up; none, if none is."""
        if not self._up:
            return None
        one, other = (self._up[int(luck * len(self._up))] for luck in self._rng.random(2).tolist())
        return min(one, other, key=lambda number: (self._replicas[number].load, number))

    def _refuse(self, work: Work, now_ms: float) -> None:
        self._refused[work.id] = True
        if self._watch:
            self._watch.missed(work, now_ms)

    def _drop(self, works: Sequence[Work], now_ms: float) -> None:
        self._dropped[[work.id for work in works]] = True
        if self._watch:
            for work in works:
                self._watch.missed(work, now_ms)

    def _start(self, number: int, now_ms: float) -> None:
        """As `Engine` does: drop what expired, ask the policy, run or refuse, until something runs."""
        replica, fleet = self._replicas[number], self._fleet
        self._drop(replica.queue.expire(now_ms), now_ms)
        while len(replica.queue):
            costs = Costs.at(now_ms, fleet.fronts, replica.correction)
            begin = time.thread_time_ns()
            decision = replica.policy.decide(replica.queue.view(), now_ms, costs)
            self._decision_us.append((time.thread_time_ns() - begin) / 1000)
            replica.queue.remove(decision.works)
            if isinstance(decision, Refuse):
                self._drop(decision.works, now_ms)
                continue
            replica.running, replica.began_ms = decision, now_ms
            replica.free_ms = now_ms + decision.predicted_ms
            first, size = decision.works[0], len(decision.works)
            took_ms = fleet.times.draw(first.modality, decision.level, size, self._rng.random())
            self._at(now_ms + took_ms, _Kind.DONE, number, replica.lives)
            return
        if replica.stage is _Stage.LEAVING:
            replica.stage = _Stage.GONE
            self._history.changed(now_ms, paid=-1)

    def _finish(self, number: int, life: int, now_ms: float) -> None:
        replica = self._replicas[number]
        if life != replica.lives:
            return
        run = replica.running
        assert run is not None, "only what runs can end"
        modality, size = run.works[0].modality, len(run.works)
        level = self._fleet.fronts[modality].levels[run.level]
        took_ms = now_ms - replica.began_ms
        replica.correction.observe(modality, level.submodel, took_ms / level.batch_ms[size - 1], now_ms)
        for work in run.works:
            self._finished_ms[work.id] = now_ms
            self._quality[work.id] = level.full_quality
        self._batch_sizes.append(size)
        if self._watch:
            self._watch.ran(run, took_ms, now_ms)
        replica.policy.observe(run, now_ms)
        replica.running, replica.free_ms = None, now_ms
        self._start(number, now_ms)

    def _fail(self, number: int, now_ms: float) -> None:
        replica = self._replicas[number]
        if replica.stage is not _Stage.UP:
            return
        lost = [*replica.queue.view(), *(replica.running.works if replica.running else ())]
        replica.queue.remove(lost)
        replica.running, replica.free_ms = None, now_ms
        replica.lives += 1
        replica.stage = _Stage.DOWN
        self._up.remove(number)
        self._history.changed(now_ms, running=-1)
        for work in lost:
            self._arrive(work, now_ms)

    def _come_up(self, number: int, now_ms: float) -> None:
        replica = self._replicas[number]
        if replica.stage not in (_Stage.STARTING, _Stage.DOWN):
            return  # it did not fail, or is not wanted any more
        if replica.stage is _Stage.STARTING:
            self._starting.remove(number)
        replica.stage, replica.up_ms = _Stage.UP, now_ms
        self._up.append(number)
        self._history.changed(now_ms, running=1)
        held, self._held = self._held, []
        for work in held:
            self._arrive(work, now_ms)

    def _scale(self, now_ms: float) -> None:
        """Ask the scaler, start or stop replicas, and come again."""
        scaling, watch = self._fleet.scaling, self._watch
        assert scaling and watch, "nobody else asks for it"
        waiting = len(self._held) + sum(replica.load for replica in map(self._replicas.__getitem__, self._up))
        wanted = watch.wanted([self._replicas[number].up_ms for number in self._up], waiting, now_ms)
        self._history.wanted(now_ms, wanted)
        while wanted > len(self._up) + len(self._starting):
            number = len(self._replicas)
            self._replicas.append(self._new(_Stage.STARTING))
            self._starting.append(number)
            self._history.changed(now_ms, paid=1)
            self._at(now_ms + scaling.start_ms, _Kind.BACK, number)
        while wanted < len(self._up) + len(self._starting):
            self._stop((self._starting or self._up).pop(), now_ms)
        if now_ms < scaling.until_ms:
            self._at(now_ms + scaling.tick_ms, _Kind.SCALE, 0)

    def _stop(self, number: int, now_ms: float) -> None:
        replica = self._replicas[number]
        was_up = replica.stage is _Stage.UP
        idle = replica.running is None
        replica.stage = _Stage.GONE if idle else _Stage.LEAVING
        self._history.changed(now_ms, running=-was_up, paid=-idle)
