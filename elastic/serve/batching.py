"""What waits, in which order, and how long the model will need for it.

One queue per model thread, earliest deadline first; the policy (`policy.py`) looks at it whenever the thread is
free. Times are milliseconds on one monotonic clock that the caller reads and passes in, so nothing here sleeps or
looks at a clock. No torch, no ray. Source: EDF order as in SuperServe (NSDI'25); online correction after Clockwork
(OSDI'20), which predicts from recent measurements instead of trusting the profile.
"""

import math
from bisect import bisect_right, insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from elastic.errors import Overloaded
from elastic.profile.tables import Modality
from elastic.submodel import Slo, Submodel


@dataclass(frozen=True, slots=True)
class Work:
    """One input that waits for the model."""

    id: int
    modality: Modality
    """Inputs of different modalities never share a batch."""
    deadline_ms: float
    """When its embedding must be ready, on the caller's clock."""
    budget_ms: float
    """What the request asked for, for messages."""
    floor: int = 0
    """The least accurate level (index into `Front.levels`) that its `min_quality` allows."""
    priority: int = 0
    arrived_ms: float = 0.0

    @property
    def urgency(self) -> tuple[float, int, int]:
        """Sort key: earliest deadline first, then the higher priority, then the longer wait."""
        return (self.deadline_ms, -self.priority, self.id)


_urgency = attrgetter("urgency")


class EdfQueue:
    """Waiting work in order of urgency, at most `max_items` of it."""

    def __init__(self, max_items: int) -> None:
        self.max_items = max_items
        self._works: list[Work] = []

    def __len__(self) -> int:
        return len(self._works)

    def view(self) -> tuple[Work, ...]:
        """Everything that waits, most urgent first."""
        return tuple(self._works)

    def check_room(self, num_items: int, retry_after_ms: float) -> None:
        """Accept only what still fits.

        Raises:
            Overloaded: `num_items` more would be above `max_items`.
        """
        if len(self._works) + num_items > self.max_items:
            reason = f"{len(self._works)} inputs wait and {num_items} more are above the limit of {self.max_items}"
            raise Overloaded(reason, retry_after_ms)

    def add(self, works: Iterable[Work]) -> None:
        """Take work in; the caller has asked `check_room`."""
        for work in works:
            insort(self._works, work, key=_urgency)
        assert len(self._works) <= self.max_items, "check_room was not asked"

    def remove(self, works: Iterable[Work]) -> None:
        """Free the places of work that runs, was refused or whose caller left; absent work is ignored."""
        gone = {work.id for work in works}
        self._works = [work for work in self._works if work.id not in gone]

    def expire(self, now_ms: float) -> tuple[Work, ...]:
        """Remove and return the work whose deadline has passed: it must not be computed."""
        # Deadlines ascend, so the expired work is a prefix.
        count = bisect_right(self._works, now_ms, key=lambda work: work.deadline_ms)
        expired, self._works = self._works[:count], self._works[count:]
        return tuple(expired)


@dataclass(frozen=True, slots=True)
class Level:
    """One point of a front: a submodel, what it costs and what it is worth."""

    submodel: Submodel
    name: str
    """The granularity's name, or the text form of a mixed submodel."""
    batch_ms: tuple[float, ...]
    """Predicted model time of 1, 2, 3, ... inputs; never decreasing."""
    quality: Mapping[int, float]
    """Measured quality by embedding width."""

    @property
    def full_quality(self) -> float:
        """Of the full width."""
        return self.quality[max(self.quality)]

    def width(self, slo: Slo) -> int:
        """The embedding width for a request: the full one unless it asks, else the best it allows.

        Width costs the encoder nothing, so quality decides; of equals the wider. The rule is `elastic.select`'s.
        """
        if slo.embed_dim is None and slo.min_embed_dim is None and slo.max_embed_dim is None:
            return max(self.quality)
        allowed = [width for width in self.quality if slo.allows(width)]
        assert allowed, "the request's width was not checked"
        return max(allowed, key=lambda width: (self.quality[width], width))


@dataclass(frozen=True, slots=True)
class Front:
    """What one modality can be served with, ascending in cost and in quality at the full width."""

    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        assert self.levels and len({len(level.batch_ms) for level in self.levels}) == 1

    @property
    def max_batch_size(self) -> int:
        """The largest batch with a prediction."""
        return len(self.levels[0].batch_ms)

    def floor(self, slo: Slo) -> int | None:
        """The lowest level from which on every level has `min_quality` at an allowed width; None if the top has not."""
        if slo.min_quality is None:
            return 0
        best = (level.quality[level.width(slo)] for level in self.levels)
        below = [index for index, quality in enumerate(best) if quality < slo.min_quality]
        floor = below[-1] + 1 if below else 0
        return floor if floor < len(self.levels) else None


class Correction:
    """How much slower (> 1) or faster (< 1) each submodel runs than its table says, learned while serving.

    A step towards every measured ratio, larger upwards than downwards, so that the factor settles at a high
    expectile of the ratio instead of its mean: an under-estimate costs a deadline, an over-estimate a little
    quality. Clamped. Without new measurements it returns with a half-life to the machine's factor, learned in the same
    way from every batch, whatever ran; and that to 1. So a submodel that has not run yet is expected to be as slow as
    the machine has been, and one stall cannot banish one for ever (it would never run again, nor be measured again).

    Beside them stands the median over all batches, whatever ran, which a stall hardly moves: equal steps up and down.
    It returns to 1 sooner, because what it has refused is all that could have taught it better.
    """

    LOWEST, HIGHEST = 0.5, 4.0
    STEP_UP, STEP_DOWN = 0.3, 0.05
    MEDIAN_STEP, MEDIAN_HALF_LIFE_MS = 0.03, 2_000.0

    def __init__(self, half_life_ms: float = 30_000.0) -> None:
        self.half_life_ms = half_life_ms
        self._machine = (1.0, 0.0)
        """A factor and when it was learned, as for the submodels."""
        self._median = (1.0, 0.0)
        self._factors: dict[tuple[Modality, Submodel], tuple[float, float]] = {}

    def factor(self, modality: Modality, submodel: Submodel, now_ms: float) -> float:
        """What to multiply the table's prediction with."""
        machine = self.machine(now_ms)
        learned = self._factors.get((modality, submodel))
        return machine if learned is None else self._faded(learned, machine, now_ms, self.half_life_ms)

    def machine(self, now_ms: float) -> float:
        """The factor of what has not run."""
        return self._faded(self._machine, 1.0, now_ms, self.half_life_ms)

    def median(self, now_ms: float) -> float:
        """What every second batch stays below, whatever runs."""
        return self._faded(self._median, 1.0, now_ms, self.MEDIAN_HALF_LIFE_MS)

    def observe(self, modality: Modality, submodel: Submodel, ratio: float, now_ms: float) -> None:
        """Learn from one batch; `ratio` is its measured time over the table's, uncorrected."""
        median = self.median(now_ms)
        median += self.MEDIAN_STEP if ratio > median else -self.MEDIAN_STEP
        self._median = (min(max(median, self.LOWEST), self.HIGHEST), now_ms)
        own, machine = self.factor(modality, submodel, now_ms), self.machine(now_ms)
        self._factors[modality, submodel] = (self._towards(own, ratio), now_ms)
        self._machine = (self._towards(machine, ratio), now_ms)

    @staticmethod
    def _faded(learned: tuple[float, float], towards: float, now_ms: float, half_life_ms: float) -> float:
        factor, since_ms = learned
        return towards + (factor - towards) * 0.5 ** ((now_ms - since_ms) / half_life_ms)

    def _towards(self, factor: float, ratio: float) -> float:
        step = self.STEP_UP if ratio > factor else self.STEP_DOWN
        # The ratio is clamped first: one stalled batch must not count as evidence of a 100 times slower machine.
        return factor + step * (min(max(ratio, self.LOWEST), self.HIGHEST) - factor)


@dataclass(frozen=True, slots=True)
class Costs:
    """Corrected predictions at one moment: what the policy decides with."""

    fronts: Mapping[Modality, Front]
    factors: Mapping[Modality, tuple[float, ...]]
    """One factor per level."""
    median: float = math.inf
    """Of the factor of a batch, whatever runs."""
    cheapest: Mapping[Modality, tuple[int, ...]] = field(default_factory=dict)
    """For every floor, the level at or above it that is the fastest now."""

    def __post_init__(self) -> None:
        if not self.cheapest:
            # Corrections move levels independently, so a larger submodel can be the faster one for a while.
            cheapest = {modality: self._cheapest_from_floors(modality) for modality in self.fronts}
            object.__setattr__(self, "cheapest", cheapest)

    def _cheapest_from_floors(self, modality: Modality) -> tuple[int, ...]:
        alone_ms = [self.ms(modality, level, 1) for level in range(len(self.fronts[modality].levels))]
        found = [len(alone_ms) - 1]
        for level in reversed(range(len(alone_ms) - 1)):
            found.append(level if alone_ms[level] <= alone_ms[found[-1]] else found[-1])
        return tuple(reversed(found))

    @classmethod
    def at(cls, now_ms: float, fronts: Mapping[Modality, Front], correction: Correction) -> "Costs":
        """The predictions as the correction knows them now."""
        factors: dict[Modality, tuple[float, ...]] = {
            modality: tuple(correction.factor(modality, level.submodel, now_ms) for level in front.levels)
            for modality, front in fronts.items()
        }
        return cls(fronts, factors, correction.median(now_ms))

    def likely(self) -> "Costs":
        """What it takes in every second case: no factor above the median."""
        factors: dict[Modality, tuple[float, ...]] = {
            modality: tuple(min(factor, self.median) for factor in row) for modality, row in self.factors.items()
        }
        return Costs(self.fronts, factors, self.median)

    def slower(self, times: float) -> "Costs":
        """The same predictions, all so many times longer."""
        factors: dict[Modality, tuple[float, ...]] = {
            modality: tuple(factor * times for factor in row) for modality, row in self.factors.items()
        }
        return Costs(self.fronts, factors, self.median * times, self.cheapest)

    def levels(self, modality: Modality) -> tuple[Level, ...]:
        """The levels of a modality, ascending in quality."""
        return self.fronts[modality].levels

    def ms(self, modality: Modality, level: int, batch_size: int) -> float:
        """Predicted model time of a batch."""
        return self.fronts[modality].levels[level].batch_ms[batch_size - 1] * self.factors[modality][level]

    def fit(self, modality: Modality, level: int, available_ms: float) -> int:
        """The largest batch that is done in the available time; 0 if none is."""
        table = self.fronts[modality].levels[level].batch_ms
        return bisect_right(table, available_ms / self.factors[modality][level])

    def least_ms(self, work: Work) -> float:
        """The time of one input alone at the fastest level that its floor allows."""
        return self.ms(work.modality, self.cheapest[work.modality][work.floor], 1)


def merged(queue: Sequence[Work], works: Iterable[Work]) -> Sequence[Work]:
    """A queue in order of urgency with more work in its places."""
    found = list(queue)
    for work in works:
        insort(found, work, key=_urgency)
    return found
