"""Policies of other systems, to compare `lookahead.LookaheadPolicy` with: same queue, same table, same interface.

All serve the modality of the most urgent input, most urgent first, admit everything, and refuse nothing; what expires
in the queue is never computed, as under every policy here. They look at the head of the queue and its slack alone.
Quality floors are kept: a batch holds only inputs that its level is good enough for, and the head can raise it.

Sources: SlackFit, MaxAccuracy and MaxBatch from SuperServe (NSDI 2025, arXiv 2312.16733); static submodels with
adaptive batches from Clipper (NSDI 2017), as SuperServe's "Clipper+"; INFaaS (ATC 2021). Deviation: INFaaS chooses
per query among models that are loaded or not, here per batch, and all are.
"""

from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from elastic.profile.tables import Modality
from elastic.serve.batching import Costs, Front, Work
from elastic.serve.policy import Limit, Policy, Run


@dataclass(frozen=True, slots=True)
class Waiting:
    """What these policies look at."""

    modality: Modality
    floor: int
    """Of the head."""
    slack_ms: float
    """Until the head's deadline."""
    count: int
    """Inputs of the head's modality."""


class HeadPolicy(Policy):
    """Chooses level and batch size from the most urgent input."""

    def admit(self, queue: Sequence[Work], arriving: Sequence[Work], free_ms: float, costs: Costs) -> None:
        """Accept everything."""

    def decide(self, queue: Sequence[Work], now_ms: float, costs: Costs) -> Run:
        """Run the chosen level on the most urgent inputs that it is good enough for."""
        head = queue[0]
        same = [work for work in queue if work.modality is head.modality]
        waiting = Waiting(head.modality, head.floor, head.deadline_ms - now_ms, len(same))
        level, size = self.choose(waiting, costs)
        level = max(level, head.floor)
        works = tuple(work for work in same if work.floor <= level)[: max(1, size)]
        return Run(level, works, costs.ms(head.modality, level, len(works)), Limit.DEADLINE)

    @abstractmethod
    def choose(self, waiting: Waiting, costs: Costs) -> tuple[int, int]:
        """Level and batch size; a size below one means one, as something has to run."""


@dataclass(frozen=True, slots=True)
class Static(HeadPolicy):
    """Always the same level, in the largest batches that keep the head's deadline."""

    level: int
    """Index into the front's levels; the top one, if there are fewer."""

    def choose(self, waiting: Waiting, costs: Costs) -> tuple[int, int]:
        """The level, and what fits."""
        level = min(self.level, len(costs.levels(waiting.modality)) - 1)
        return level, _fit(waiting, level, costs)


class ClipperAimd(HeadPolicy):
    """Always the same level; the batch size grows by one while deadlines are kept and shrinks by a tenth when not."""

    BACK_OFF = 0.9

    def __init__(self, level: int) -> None:
        self.level = level
        self._limit = 1.0

    def choose(self, waiting: Waiting, costs: Costs) -> tuple[int, int]:
        """The level, and the present limit."""
        front = costs.fronts[waiting.modality]
        return min(self.level, len(front.levels) - 1), min(int(self._limit), waiting.count, front.max_batch_size)

    def observe(self, run: Run, finished_ms: float) -> None:
        """Grow after a full batch in time, shrink after a late one."""
        if any(finished_ms > work.deadline_ms for work in run.works):
            self._limit = max(1.0, self._limit * self.BACK_OFF)
        elif len(run.works) >= int(self._limit):
            self._limit += 1.0


class InfaasMinCost(HeadPolicy):
    """The cheapest level that is good enough; without quality floors, always the smallest."""

    def choose(self, waiting: Waiting, costs: Costs) -> tuple[int, int]:
        """The cheapest at or above the head's floor, and what fits."""
        level = costs.cheapest[waiting.modality][waiting.floor]
        return level, _fit(waiting, level, costs)


class MaxAccuracy(HeadPolicy):
    """The most accurate level that keeps the head's deadline, then the largest batch at it."""

    def choose(self, waiting: Waiting, costs: Costs) -> tuple[int, int]:
        """Accuracy first."""
        level = _most_accurate(waiting, 1, costs)
        return level, _fit(waiting, level, costs)


class MaxBatch(HeadPolicy):
    """The largest batch that keeps the head's deadline at the cheapest level, then the most accurate level for it."""

    def choose(self, waiting: Waiting, costs: Costs) -> tuple[int, int]:
        """Batch first."""
        cheapest = costs.cheapest[waiting.modality][waiting.floor]
        size = max(1, _fit(waiting, cheapest, costs))
        return _most_accurate(waiting, size, costs), size


class SlackFit(HeadPolicy):
    """SuperServe: of all pairs of level and batch size, one whose time is just below the head's slack.

    Times are divided into buckets of equal width; of a bucket the largest batch stands for all, of equal batches the
    most accurate level. The bucket is the last that ends within the slack. Corrections move the slack, as one factor.
    """

    def __init__(self, fronts: Mapping[Modality, Front], num_buckets: int = 32) -> None:
        self._buckets = {modality: _buckets(front, num_buckets) for modality, front in fronts.items()}

    def choose(self, waiting: Waiting, costs: Costs) -> tuple[int, int]:
        """The pair of the last bucket that fits; the first bucket's, if none does."""
        buckets = self._buckets[waiting.modality]
        slack_ms = waiting.slack_ms / max(costs.factors[waiting.modality])
        best = buckets[max(0, bisect_right(buckets, slack_ms, key=lambda bucket: bucket.ms) - 1)]
        return best.level, min(best.size, waiting.count)


@dataclass(frozen=True, slots=True)
class _Bucket:
    ms: float
    """The time of its pair."""
    level: int
    size: int


def _buckets(front: Front, num_buckets: int) -> tuple[_Bucket, ...]:
    """One pair per bucket that has any, ascending in time; sizes are powers of two and the largest."""
    largest = front.max_batch_size
    sizes = sorted({largest, *(1 << n for n in range(largest.bit_length()))})
    pairs = [
        _Bucket(level.batch_ms[size - 1], number, size)
        for number, level in enumerate(front.levels)
        for size in sizes
        if size <= largest
    ]
    least, most = min(pair.ms for pair in pairs), max(pair.ms for pair in pairs)
    width = (most - least) / num_buckets or 1.0
    chosen: dict[int, _Bucket] = {}
    for pair in pairs:
        place = min(int((pair.ms - least) / width), num_buckets - 1)
        if place not in chosen or (pair.size, pair.level) > (chosen[place].size, chosen[place].level):
            chosen[place] = pair
    return tuple(sorted(chosen.values(), key=lambda pair: pair.ms))


def _fit(waiting: Waiting, level: int, costs: Costs) -> int:
    return min(costs.fit(waiting.modality, level, waiting.slack_ms), waiting.count)


def _most_accurate(waiting: Waiting, size: int, costs: Costs) -> int:
    """The highest level whose batch of `size` is done within the slack; the cheapest, if none is."""
    levels = range(waiting.floor, len(costs.levels(waiting.modality)))
    fitting = [level for level in levels if costs.ms(waiting.modality, level, size) <= waiting.slack_ms]
    return fitting[-1] if fitting else costs.cheapest[waiting.modality][waiting.floor]
