"""How much a replica was asked for and how well it answered, as sums that add up over replicas.

What counts is the load itself and not the queue: a server that degrades keeps its queue short by answering less
accurately, so a short queue says nothing about how many replicas are missing. Times are milliseconds on a clock that
is passed in. No torch, no ray.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import astuple, dataclass

from elastic.profile.tables import Modality
from elastic.serve.batching import Front
from elastic.serve.engine import RanBatch, Request, monotonic_ms
from elastic.serve.observer import ERROR, Observer, Outcome

WAIT = 1.5
"""Times of a batch between arrival and answer at a busy server: the wait for one that runs, half of it on average, and
its own."""

MAX_REMEMBERED = 4096
"""Answers to questions that are asked again and again."""


@dataclass(slots=True)
class Load:
    """Sums over a stretch of time; those of several replicas add up to those of the fleet."""

    span_ms: float = 0.0
    """Replica time that was watched."""
    window_ms: float = 0.0
    """Time that passed; of several replicas, the longest."""
    requests: float = 0.0
    """That ended, those aside that no number of replicas could have answered in time."""
    missed: float = 0.0
    """Of these: refused, expired or late."""
    best: float = 0.0
    """Quality that the answered inputs could have had in their budgets, had nothing else waited."""
    lost: float = 0.0
    """What they got less."""
    full_ms: float = 0.0
    """Model time, by the table, of all that was asked at the most accurate level that its budget allows."""
    table_ms: float = 0.0
    """Model time, by the table, of what was computed."""
    busy_ms: float = 0.0
    """What it really took."""
    waiting: float = 0.0
    """Inputs that are not answered yet; of this moment, not of the stretch."""

    def __add__(self, other: "Load") -> "Load":
        total = Load(*(one + more for one, more in zip(astuple(self), astuple(other), strict=True)))
        total.window_ms = max(self.window_ms, other.window_ms)
        return total

    @property
    def attainment(self) -> float:
        """Share of requests that met their objective; 1 without any."""
        return 1.0 - self.missed / self.requests if self.requests else 1.0

    @property
    def quality_loss(self) -> float:
        """Share of the possible quality that the answers went without."""
        return self.lost / self.best if self.best else 0.0

    @property
    def busy(self) -> float:
        """Share of its time that a model thread computed."""
        return self.busy_ms / self.span_ms if self.span_ms else 0.0

    @property
    def slowness(self) -> float:
        """Real over predicted time; 1 until something ran."""
        return self.busy_ms / self.table_ms if self.table_ms else 1.0

    @property
    def work(self) -> float:
        """Replicas that would be busy all the time if everything that was asked were answered at full quality."""
        # Over the time that passed: a replica that came up lately takes over work, it does not bring any.
        return self.full_ms * self.slowness / self.window_ms if self.window_ms else 0.0


@dataclass(frozen=True, slots=True)
class Ideal:
    """How a request would be answered by a fleet that is large enough."""

    level: int
    """Index into the front's levels."""
    ms: float
    """Model time of all its inputs, in batches as large as the budget has room for."""


def ideal(front: Front, num_inputs: int, budget_ms: float) -> Ideal | None:
    """The most accurate level that leaves room to wait for a running batch; None if not even an idle replica is fast
    enough at any level."""

    def alone_ms(level: int) -> float:
        batch_ms, whole = front.levels[level].batch_ms, num_inputs // front.max_batch_size
        rest = num_inputs % front.max_batch_size
        return whole * batch_ms[-1] + (batch_ms[rest - 1] if rest else 0.0)

    if alone_ms(0) > budget_ms:
        return None
    fitting = [level for level in range(len(front.levels)) if WAIT * alone_ms(level) <= budget_ms]
    best = fitting[-1] if fitting else 0
    batch_ms = front.levels[best].batch_ms
    sizes = [size for size, ms in enumerate(batch_ms, 1) if WAIT * ms <= budget_ms]
    size = max(sizes[-1] if sizes else 1, min(num_inputs, front.max_batch_size))
    return Ideal(best, num_inputs * batch_ms[size - 1] / size)


class LoadWindow:
    """The load of the last `window_ms`, in slots, so that it takes no more memory under more load."""

    def __init__(self, window_ms: float, now_ms: float, num_slots: int = 10) -> None:
        self._slot_ms, self._num_slots = window_ms / num_slots, num_slots
        self._since_ms = now_ms
        self._slots: deque[tuple[int, Load]] = deque()

    def slot(self, now_ms: float) -> Load:
        """Where to add what happens now."""
        number = int(now_ms // self._slot_ms)
        if not self._slots or self._slots[-1][0] != number:
            self._drop(number)
            self._slots.append((number, Load()))
        return self._slots[-1][1]

    def load(self, now_ms: float) -> Load:
        """The sum; it reaches back to the beginning of the oldest slot."""
        number = int(now_ms // self._slot_ms)
        self._drop(number)
        oldest_ms = (number - self._num_slots + 1) * self._slot_ms
        total = sum((load for _, load in self._slots), Load())
        total.span_ms = total.window_ms = now_ms - max(oldest_ms, self._since_ms)
        return total

    def _drop(self, number: int) -> None:
        while self._slots and self._slots[0][0] <= number - self._num_slots:
            self._slots.popleft()


class LoadMeter:
    """Adds up what happens, and what could have happened instead."""

    def __init__(self, window_ms: float, now_ms: float) -> None:
        self._window = LoadWindow(window_ms, now_ms)
        self._fronts: Mapping[Modality, Front] = {}
        self._ideals: dict[tuple[Modality, int, float], Ideal | None] = {}

    def choose_from(self, fronts: Mapping[Modality, Front]) -> None:
        """Compare with what these fronts allow from now on."""
        if fronts is not self._fronts:
            self._fronts, self._ideals = fronts, {}

    def load(self, now_ms: float, waiting: float = 0.0) -> Load:
        """What the window holds, and what waits now."""
        load = self._window.load(now_ms)
        load.waiting = waiting
        return load

    def ran(self, table_ms: float, took_ms: float, now_ms: float) -> None:
        """A batch was computed."""
        slot = self._window.slot(now_ms)
        slot.table_ms += table_ms
        slot.busy_ms += took_ms

    def ended(self, asked: Mapping[Modality, int], budget_ms: float, met: bool, now_ms: float) -> dict[Modality, Ideal]:
        """A request was answered or not; returns how it could have been, empty if it does not count."""
        found: dict[Modality, Ideal] = {}
        for modality, count in asked.items():
            one = self._ideal(modality, count, budget_ms)
            if one is None:
                return {}
            found[modality] = one
        slot = self._window.slot(now_ms)
        slot.requests += 1
        slot.missed += not met
        slot.full_ms += sum(one.ms for one in found.values())
        return found

    def answered(self, best: float, got: float, now_ms: float) -> None:
        """An input got an answer of a quality, when the best possible was another."""
        slot = self._window.slot(now_ms)
        slot.best += best
        # The table may be too careful: more than was thought possible makes up for no other answer.
        slot.lost += max(0.0, best - got)

    def _ideal(self, modality: Modality, count: int, budget_ms: float) -> Ideal | None:
        key = (modality, count, budget_ms)
        if key not in self._ideals:
            if len(self._ideals) >= MAX_REMEMBERED:
                self._ideals.clear()
            front = self._fronts.get(modality)
            self._ideals[key] = None if front is None else ideal(front, count, budget_ms)
        return self._ideals[key]


class LoadObserver(Observer):
    """Counts what one replica does; `fronts` says what it serves from now."""

    def __init__(
        self,
        fronts: Callable[[], Mapping[Modality, Front]],
        window_s: float,
        clock: Callable[[], float] = monotonic_ms,
    ) -> None:
        self._fronts, self._clock = fronts, clock
        self._meter = LoadMeter(1000 * window_s, clock())

    def load(self, waiting: int) -> Load:
        """The last window."""
        return self._meter.load(self._clock(), waiting)

    def batch_ran(self, batch: RanBatch) -> None:
        """Count the model's time."""
        table_ms = batch.level.batch_ms[len(batch.run.works) - 1]
        self._meter.ran(table_ms, batch.compute_ms, self._clock())

    def request_finished(self, outcome: Outcome) -> None:
        """Count the request, if more replicas could have made a difference to it."""
        request = outcome.request
        if request is None or not outcome.counts or outcome.name == ERROR:
            return
        now_ms, fronts = self._clock(), self._fronts()
        self._meter.choose_from(fronts)
        preprocess_ms = max((one.preprocess_ms for one in outcome.computed), default=0.0)
        budget_ms = request.deadline_ms - request.arrived_ms - preprocess_ms
        # Budgets that differ by microseconds are one question.
        ideals = self._meter.ended(_counts(request), _round(budget_ms), outcome.met, now_ms)
        for one in outcome.computed if ideals else ():
            level = fronts[one.modality].levels[ideals[one.modality].level]
            self._meter.answered(level.quality[level.width(request.slo)], one.quality, now_ms)


def _counts(request: Request) -> dict[Modality, int]:
    return {modality: request.modalities.count(modality) for modality in dict.fromkeys(request.modalities)}


def _round(ms: float) -> float:
    """Down by less than 2 %."""
    return 1.02 ** math.floor(math.log(ms, 1.02)) if ms > 0 else 0.0
