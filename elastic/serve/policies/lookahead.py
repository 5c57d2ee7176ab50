"""The server's policy: accuracy from slack, as far as what waits and what arrives allow.

It keeps a promise: once admitted, a request is met as long as predictions hold, because nothing is admitted or started
that would make the *floor plan* late: the schedule that serves everything at its fastest allowed submodel. The slack
that it leaves is spent on accuracy, as far as the present rate of arrivals can sustain. Where nobody else waits, what
is more likely in time than not is tried: a refusal would help nobody, and teach nothing.

Sources: earliest deadline first and "slack buys accuracy" from SuperServe's SlackFit (NSDI 2025), which looks at the
head of the queue alone; early refusal from Clockwork (OSDI 2020).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from elastic.errors import Overloaded
from elastic.profile.tables import Modality
from elastic.serve.batching import Costs, Work, merged
from elastic.serve.policies.demand import Demand
from elastic.serve.policies.headroom import Headroom
from elastic.serve.policy import Limit, Policy, Refuse, Run, floor_plan, is_on_time

PATIENCE = 2.0
"""How many times as long as the head of the queue a request may take before they share a batch for no reason."""


class LookaheadPolicy(Policy):
    """The most accurate answers to everything that waits or will soon, of those that keep every deadline.

    It takes the largest batch that keeps the batch's deadlines and leaves the floor plan of what then still waits on
    time, and of the submodels that do the one that promises the best mean quality over the batch and all that has to
    follow: what then waits, and what will have arrived meanwhile (`Outlook`). So a quiet server answers with the most
    accurate submodel, and when more arrives than that can serve, it is given up just as far as needed.
    """

    def __init__(self, headroom: float = Headroom.START) -> None:
        self._headroom = Headroom(headroom)
        self._demand = Demand()

    def headroom(self, now_ms: float) -> float:
        """As learned so far."""
        return self._headroom.at(now_ms)

    def notice(self, arriving: Sequence[Work]) -> None:
        """Learn the rate of arrivals."""
        self._demand.observe(arriving)

    def admit(self, queue: Sequence[Work], arriving: Sequence[Work], free_ms: float, costs: Costs) -> None:
        """Accept arriving work if the floor plan of everything stays on time.

        Alone it is accepted if it is more likely in time than not.

        Raises:
            Overloaded: it would not; the hint is when the present queue will be done.
        """
        careful = costs.slower(self.headroom(free_ms))
        plan = floor_plan(merged(queue, arriving), free_ms, careful if queue else costs.likely())
        if plan.late is not None:
            backlog = floor_plan(queue, free_ms, careful)
            reason = f"{len(queue)} inputs wait, so {len(arriving)} more would be late even at the fastest submodel"
            earliest = min(work.arrived_ms for work in arriving)
            raise Overloaded(reason, max(1.0, backlog.finish_ms - earliest))

    def decide(self, queue: Sequence[Work], now_ms: float, costs: Costs) -> Run | Refuse:
        """Refuse what cannot be met any more; else run the batch that promises most."""
        hopeful = costs.likely() if _came_together(queue) else costs
        doomed = tuple(work for work in queue if now_ms + hopeful.least_ms(work) > work.deadline_ms)
        if doomed:
            self._headroom.observe(num_kept=0, num_broken=len(doomed), now_ms=now_ms)
            return Refuse(doomed)
        careful = costs.slower(self.headroom(now_ms))
        outlook = Outlook(careful, queue[0].modality, self._demand.rate(now_ms), self._demand.budget_ms)
        promises = (_best(series, queue, now_ms, careful, outlook) for series in _series(queue))
        best = max((found for found in promises if found is not None), key=_Promise.rank, default=None)
        if best is not None:
            works = best.works
            predicted_ms = costs.ms(works[0].modality, best.level, len(works))
            return Run(best.level, works, predicted_ms, _limit(works, best.level, now_ms, careful))
        # The plan's own beginning keeps every promise that can still be kept.
        first = floor_plan(queue, now_ms, hopeful).first
        assert first is not None, "decide needs a queue"
        return replace(first, limit=_limit(first.works, first.level, now_ms, careful))

    def observe(self, run: Run, finished_ms: float) -> None:
        """Learn how many of its promises were kept."""
        num_broken = sum(finished_ms > work.deadline_ms for work in run.works)
        self._headroom.observe(len(run.works) - num_broken, num_broken, finished_ms)


class Outlook:
    """How accurately inputs of one modality could be served after a batch.

    Never better than it can go on: when a steady stream of the present rate is served, what arrives during one batch
    is the next one, and both have to be done within a budget, so each batch has half of it. A bound on the future
    keeps slack from being saved for better answers that cannot come.
    """

    def __init__(self, costs: Costs, modality: Modality, rate: float, budget_ms: float) -> None:
        self.rate = rate
        """Inputs per millisecond."""
        self.budget_ms = budget_ms
        self.qualities = [level.full_quality for level in costs.levels(modality)]
        self._ms = [
            (level.batch_ms, factor)
            for level, factor in zip(costs.levels(modality), costs.factors[modality], strict=True)
        ]
        self._sustainable = math.inf
        if math.isfinite(budget_ms):
            self._sustainable = self.quality(rate * budget_ms / 2, budget_ms / 2)

    def quality(self, count: float, left_ms: float) -> float:
        """Mean quality of `count` inputs that have `left_ms` together: between two levels, in a straight line.

        Below the lowest level, what is not done in time counts as zero.
        """
        above_ms = 0.0
        for level in range(len(self._ms) - 1, -1, -1):
            needed_ms = self.needed_ms(level, count)
            if needed_ms <= left_ms:
                best = self.qualities[level]
                if above_ms > needed_ms:
                    step = self.qualities[level + 1] - best
                    best += step * (left_ms - needed_ms) / (above_ms - needed_ms)
                return min(best, self._sustainable)
            above_ms = needed_ms
        return min(self.qualities[0] * max(0.0, left_ms) / above_ms, self._sustainable)

    def needed_ms(self, level: int, count: float) -> float:
        """Predicted time of so many inputs, in full batches if they are more than one holds."""
        times, factor = self._ms[level]
        if count >= len(times):
            return times[-1] * factor * count / len(times)
        return times[max(0, math.ceil(count) - 1)] * factor


@dataclass(frozen=True, slots=True)
class _Promise:
    quality: float
    """Mean over the batch and what follows."""
    level: int
    took_ms: float
    """With headroom."""
    works: tuple[Work, ...]

    def rank(self) -> tuple[float, int]:
        """The better, and of equals up to rounding the larger batch."""
        return (round(self.quality, 9), len(self.works))


def _came_together(queue: Sequence[Work]) -> bool:
    """Whether nobody waits but one request."""
    return all(work.arrived_ms == queue[0].arrived_ms for work in queue)


def _series(queue: Sequence[Work]) -> list[list[Work]]:
    """Who could share a batch with the head, most urgent first: all of its modality; without those whose higher floor
    would raise the cost of the whole batch; and without those whose patience the head's hurry would waste."""
    head = queue[0]
    same = [work for work in queue if work.modality is head.modality]
    lenient = [work for work in same if work.floor <= head.floor]
    hurried = [work for work in same if work.budget_ms <= PATIENCE * head.budget_ms]
    return [same, *(fewer for fewer in (lenient, hurried) if len(fewer) < len(same))]


def _best(
    series: Sequence[Work], queue: Sequence[Work], now_ms: float, costs: Costs, outlook: Outlook
) -> _Promise | None:
    """What promises most, of the largest batch of a series that is on time at some level and leaves the rest so.

    The largest, because an input costs least in it, and time that is saved is worth more than what is known now: it
    serves what has not arrived yet.
    """
    head = series[0]
    fastest = costs.cheapest[head.modality][max(work.floor for work in series)]
    size = min(len(series), costs.fit(head.modality, fastest, head.deadline_ms - now_ms))
    while size:
        works = tuple(series[:size])
        rest = _without(queue, works)
        promises = sorted(_promises(works, rest, now_ms, outlook), key=_Promise.rank, reverse=True)
        # What is too long for the rest at the fastest level is so at every level.
        if promises and is_on_time(rest, now_ms + min(promise.took_ms for promise in promises), costs):
            return next(found for found in promises if is_on_time(rest, now_ms + found.took_ms, costs))
        size //= 2
    return None


def _promises(works: tuple[Work, ...], rest: Sequence[Work], now_ms: float, outlook: Outlook) -> Iterator[_Promise]:
    """What a batch promises at every level that is in time for it."""
    size, available_ms = len(works), works[0].deadline_ms - now_ms
    next_ms = min(rest[0].deadline_ms - now_ms, outlook.budget_ms) if rest else outlook.budget_ms
    for level in range(max(work.floor for work in works), len(outlook.qualities)):
        took_ms = outlook.needed_ms(level, size)
        if took_ms <= available_ms:
            later = len(rest) + outlook.rate * took_ms
            total = size * outlook.qualities[level] + later * outlook.quality(later, next_ms - took_ms)
            yield _Promise(total / (size + later), level, took_ms, works)


def _limit(works: Sequence[Work], level: int, now_ms: float, costs: Costs) -> Limit:
    """What stands in the way of the next level."""
    head, above = works[0], level + 1
    if above == len(costs.levels(head.modality)):
        return Limit.NONE
    done_ms = now_ms + costs.ms(head.modality, above, len(works))
    return Limit.DEADLINE if done_ms > head.deadline_ms else Limit.BACKLOG


def _without(queue: Sequence[Work], works: Sequence[Work]) -> list[Work]:
    gone = {work.id for work in works}
    return [work for work in queue if work.id not in gone]
