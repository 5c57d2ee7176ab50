"""A discrete-event simulation of replicas, each with the server's queue, policy and correction.

The clock is virtual: an hour of a thousand replicas takes as long as its events. Everything that decides is the code
that serves (`serve.batching`, `serve.policy`); what is modelled is the time of a batch (`Times`), the time that
an answer spends outside of the model (`overhead_ms`), and which replica a request goes to: of two drawn at random, the
one with less waiting, as Ray Serve routes. A replica that fails loses nothing: what it held is sent to others at once,
with the deadlines it had, as a client would that tries again.
"""

import heapq
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float, Int

from elastic.errors import Overloaded
from elastic.profile.tables import Modality
from elastic.serve.batching import Correction, Costs, EdfQueue, Front, Work
from elastic.serve.policy import Policy, Refuse, Run
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


class _Kind(IntEnum):
    DONE = 0  # before arrivals of the same moment: the model is free for them
    BACK = 1
    FAIL = 2
    ARRIVE = 3


@dataclass(slots=True)
class _Replica:
    policy: Policy
    queue: EdfQueue
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
        self._replicas = [_Replica(fleet.policy(), EdfQueue(fleet.max_waiting)) for _ in range(fleet.num_replicas)]
        self._up = list(range(fleet.num_replicas))
        self._events: list[tuple[float, _Kind, int, int, int]] = []
        self._order = itertools.count()
        self._finished_ms, self._quality = np.full(count, np.nan), np.full(count, np.nan)
        self._refused, self._dropped = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
        self._batch_sizes: list[int] = []
        self._decision_us: list[float] = []

    def run(self) -> Outcome:
        for number, at_ms in enumerate(self._requests.at_ms.tolist()):
            self._at(at_ms, _Kind.ARRIVE, number)
        for failure in self._fleet.failures:
            self._at(failure.at_ms, _Kind.FAIL, failure.replica)
            self._at(failure.at_ms + failure.down_ms, _Kind.BACK, failure.replica)
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
                    self._up = sorted({*self._up, which})
        latency_ms = self._finished_ms + self._fleet.overhead_ms - self._requests.at_ms
        return Outcome(
            latency_ms=latency_ms,
            quality=self._quality,
            met=latency_ms <= self._requests.slo_ms + 1e-9,
            refused=self._refused,
            dropped=self._dropped,
            batch_sizes=np.array(self._batch_sizes, np.int64),
            decision_us=np.array(self._decision_us),
        )

    def _at(self, ms: float, kind: _Kind, which: int, life: int = 0) -> None:
        heapq.heappush(self._events, (ms, kind, next(self._order), which, life))

    def _arrive(self, work: Work, now_ms: float) -> None:
        number = self._route()
        if number is None:
            self._refused[work.id] = True
            return
        replica = self._replicas[number]
        try:
            replica.policy.notice([work])
            replica.queue.check_room(1, 1.0)
            costs = Costs.at(now_ms, self._fleet.fronts, replica.correction)
            replica.policy.admit(replica.queue.view(), [work], max(now_ms, replica.free_ms), costs)
        except Overloaded:
            self._refused[work.id] = True
            return
        replica.queue.add([work])
        if replica.running is None:
            self._start(number, now_ms)

    def _route(self) -> int | None:
        """The less loaded of two replicas that are up; none, if none is."""
        if not self._up:
            return None
        drawn = {self._up[place] for place in self._rng.integers(len(self._up), size=2).tolist()}
        return min(drawn, key=lambda number: (self._replicas[number].load, number))

    def _start(self, number: int, now_ms: float) -> None:
        """As `Engine` does: drop what expired, ask the policy, run or refuse, until something runs."""
        replica, fleet = self._replicas[number], self._fleet
        self._dropped[[work.id for work in replica.queue.expire(now_ms)]] = True
        while len(replica.queue):
            costs = Costs.at(now_ms, fleet.fronts, replica.correction)
            begin = time.thread_time_ns()
            decision = replica.policy.decide(replica.queue.view(), now_ms, costs)
            self._decision_us.append((time.thread_time_ns() - begin) / 1000)
            replica.queue.remove(decision.works)
            if isinstance(decision, Refuse):
                self._dropped[[work.id for work in decision.works]] = True
                continue
            replica.running, replica.began_ms = decision, now_ms
            replica.free_ms = now_ms + decision.predicted_ms
            first, size = decision.works[0], len(decision.works)
            took_ms = fleet.times.draw(first.modality, decision.level, size, self._rng.random())
            self._at(now_ms + took_ms, _Kind.DONE, number, replica.lives)
            return

    def _finish(self, number: int, life: int, now_ms: float) -> None:
        replica = self._replicas[number]
        if life != replica.lives:
            return
        run = replica.running
        assert run is not None, "only what runs can end"
        modality, size = run.works[0].modality, len(run.works)
        level = self._fleet.fronts[modality].levels[run.level]
        ratio = (now_ms - replica.began_ms) / level.batch_ms[size - 1]
        replica.correction.observe(modality, level.submodel, ratio, now_ms)
        for work in run.works:
            self._finished_ms[work.id] = now_ms
            self._quality[work.id] = level.full_quality
        self._batch_sizes.append(size)
        replica.policy.observe(run, now_ms)
        replica.running, replica.free_ms = None, now_ms
        self._start(number, now_ms)

    def _fail(self, number: int, now_ms: float) -> None:
        if number not in self._up:
            return  # it is down already
        replica = self._replicas[number]
        lost = [*replica.queue.view(), *(replica.running.works if replica.running else ())]
        replica.queue.remove(lost)
        replica.running, replica.free_ms = None, now_ms
        replica.lives += 1
        self._up.remove(number)
        for work in lost:
            self._arrive(work, now_ms)
