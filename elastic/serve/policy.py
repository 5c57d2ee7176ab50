"""Which submodel and which batch run next, and what is refused.

A policy is pure: (queue, now, predicted costs) in, decision out. `LookaheadPolicy` is the default. It keeps a
promise: once admitted, a request is met as long as predictions hold, because nothing is admitted or started that
would make the *floor plan* late. The floor plan is the schedule that serves everything at its fastest allowed
submodel, earliest deadline first, in the largest batches that fit; whatever slack it leaves is spent on accuracy.
So a quiet server answers with the most accurate submodel, and a backlog moves it to smaller submodels and larger
batches by itself. Sources: EDF order and "slack buys accuracy" from SuperServe's SlackFit (NSDI'25); early
refusal from Clockwork (OSDI'20). SlackFit looks only at the head of the queue; this looks at all of it.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from elastic.errors import Overloaded
from elastic.profile.tables import Modality
from elastic.serve.batching import Costs, Work, urgent_first


class Limit(Enum):
    """What kept the policy from a larger submodel."""

    NONE = "nothing larger is on the front"
    DEADLINE = "a larger submodel would have missed this batch's deadline"
    BACKLOG = "a larger submodel would have made waiting requests late or less accurate"


@dataclass(frozen=True, slots=True)
class Run:
    """Compute this batch now."""

    level: int
    """Index into the front's levels."""
    works: tuple[Work, ...]
    """One modality, most urgent first."""
    predicted_ms: float
    limit: Limit


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer these without computing them: even alone and at their fastest submodel they would be late."""

    works: tuple[Work, ...]


class Policy(ABC):
    """Decides for one model thread."""

    @abstractmethod
    def admit(self, queue: Sequence[Work], arriving: Sequence[Work], free_ms: float, costs: Costs) -> None:
        """Accept arriving work, given when the model thread will be free.

        Raises:
            Overloaded: it, or something that waits already, would be late.
        """

    @abstractmethod
    def decide(self, queue: Sequence[Work], now_ms: float, costs: Costs) -> Run | Refuse:
        """What to do now that the model thread is free; `queue` is not empty and holds no expired work."""

    def observe(self, run: Run, finished_ms: float) -> None:  # noqa: B027 (most policies learn nothing)
        """Learn from a batch that is done."""


@dataclass(frozen=True, slots=True)
class FloorPlan:
    """How the floor plan begins and ends."""

    first: Run | None
    """Its first batch; what is left of the plan after it is the floor plan of the rest."""
    late: Work | None
    """The first work that it cannot finish in time."""
    finish_ms: float


def floor_plan(queue: Sequence[Work], start_ms: float, costs: Costs, at_least: int = 0) -> FloorPlan:
    """Serve everything at its fastest allowed level, earliest deadline first, in the largest batches that fit.

    `at_least` raises every floor, which tells how accurately the queue could be served.
    """
    groups: dict[tuple[Modality, int], list[Work]] = {}
    for work in queue:
        top = len(costs.levels(work.modality)) - 1
        level = costs.cheapest[work.modality][min(max(work.floor, at_least), top)]
        groups.setdefault((work.modality, level), []).append(work)
    now_ms = start_ms
    late: Work | None = None
    first: Run | None = None
    served = dict.fromkeys(groups, 0)
    while groups:
        key = min(groups, key=lambda group: groups[group][served[group]].urgency)
        waiting, begin = groups[key], served[key]
        head = waiting[begin]
        latest_ms = head.deadline_ms
        for other, rest in groups.items():
            if other != key:
                latest_ms = min(latest_ms, rest[served[other]].deadline_ms - costs.ms(*other, 1))
        size = max(1, min(costs.fit(*key, latest_ms - now_ms), len(waiting) - begin))
        predicted_ms = costs.ms(*key, size)
        first = first or Run(key[1], tuple(waiting[begin : begin + size]), predicted_ms, Limit.BACKLOG)
        now_ms += predicted_ms
        if late is None and now_ms > head.deadline_ms:
            late = head
        served[key] += size
        if served[key] == len(waiting):
            del groups[key]
    return FloorPlan(first, late, now_ms)


class LookaheadPolicy(Policy):
    """The most accurate answer to everything that waits, of those that keep every deadline.

    Of each batch size it takes the most accurate submodel that keeps the batch's deadlines and leaves the floor
    plan of the rest on time; of those batches, the one with the highest expected quality over the whole queue (the
    batch as chosen, the rest as accurately as it could still be served afterwards); of equals, the largest.
    """

    def admit(self, queue: Sequence[Work], arriving: Sequence[Work], free_ms: float, costs: Costs) -> None:
        """Accept arriving work if the floor plan of everything stays on time.

        Raises:
            Overloaded: it would not; the hint is when the present queue will be done.
        """
        plan = floor_plan(urgent_first([*queue, *arriving]), free_ms, costs)
        if plan.late is not None:
            backlog = floor_plan(queue, free_ms, costs)
            reason = f"{len(queue)} inputs wait, so {len(arriving)} more would be late even at the fastest submodel"
            earliest = min(work.arrived_ms for work in arriving)
            raise Overloaded(reason, max(1.0, backlog.finish_ms - earliest))

    def decide(self, queue: Sequence[Work], now_ms: float, costs: Costs) -> Run | Refuse:
        """Refuse what cannot be met any more; else run the best batch."""
        doomed = tuple(work for work in queue if now_ms + costs.least_ms(work) > work.deadline_ms)
        if doomed:
            return Refuse(doomed)
        runs = [run for works in _batches(queue, costs) if (run := _most_accurate(works, queue, now_ms, costs))]
        if not runs:
            # The plan's own beginning keeps every promise that can still be kept.
            first = floor_plan(queue, now_ms, costs).first
            assert first is not None, "decide needs a queue"
            return first
        if len(runs) == 1:
            return runs[0]
        return max(runs, key=lambda run: (_expected_quality(run, queue, now_ms, costs), len(run.works)))


def _batches(queue: Sequence[Work], costs: Costs) -> Iterator[tuple[Work, ...]]:
    """Batches worth comparing: the head's modality, most urgent first, in sizes that double.

    One series takes everyone; another only those whose floor is no higher than the head's, because one strict
    floor would raise the cost of the whole batch.
    """
    head = queue[0]
    same = [work for work in queue if work.modality is head.modality]
    lenient = [work for work in same if work.floor <= head.floor]
    limit = costs.fronts[head.modality].max_batch_size
    for eligible in [same] if len(lenient) == len(same) else [same, lenient]:
        largest = min(limit, len(eligible))
        # Deep in a backlog only the largest batch helps, and comparing costs time.
        sizes = {largest} if len(queue) > 4 * limit else {largest, *(1 << n for n in range(largest.bit_length()))}
        for size in sorted(size for size in sizes if size <= largest):
            yield tuple(eligible[:size])


def _most_accurate(works: tuple[Work, ...], queue: Sequence[Work], now_ms: float, costs: Costs) -> Run | None:
    """The batch at the highest level that keeps its deadlines and the rest's floor plan on time."""
    modality, size, available_ms = works[0].modality, len(works), works[0].deadline_ms - now_ms
    floor, num_levels = max(work.floor for work in works), len(costs.levels(modality))
    rest = _without(queue, works)

    def obstacle(level: int) -> Limit:
        predicted_ms = costs.ms(modality, level, size)
        if predicted_ms > available_ms:
            return Limit.DEADLINE
        return Limit.NONE if floor_plan(rest, now_ms + predicted_ms, costs).late is None else Limit.BACKLOG

    # Costs ascend with the level up to corrections, so the levels without an obstacle come first.
    above = bisect_left(range(floor, num_levels), True, key=lambda level: obstacle(level) is not Limit.NONE) + floor
    if above == floor:
        return None
    limit = obstacle(above) if above < num_levels else Limit.NONE
    return Run(above - 1, works, costs.ms(modality, above - 1, size), limit)


def _expected_quality(run: Run, queue: Sequence[Work], now_ms: float, costs: Costs) -> float:
    """Mean quality at the full width over the queue if this runs now and the rest as well as then possible."""
    rest = _without(queue, run.works)
    start_ms = now_ms + run.predicted_ms
    raised = range(1, max(len(front.levels) for front in costs.fronts.values()))
    level = bisect_left(raised, True, key=lambda floor: floor_plan(rest, start_ms, costs, floor).late is not None)
    total = len(run.works) * _quality(run.works[0].modality, run.level, costs)
    total += sum(_quality(work.modality, max(work.floor, level), costs) for work in rest)
    return total / len(queue)


def _quality(modality: Modality, level: int, costs: Costs) -> float:
    levels = costs.levels(modality)
    quality = levels[min(level, len(levels) - 1)].quality
    return quality[max(quality)]


def _without(queue: Sequence[Work], works: Sequence[Work]) -> list[Work]:
    gone = {work.id for work in works}
    return [work for work in queue if work.id not in gone]
