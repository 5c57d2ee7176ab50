"""What decides: which submodel and which batch run next, and what is refused.

A policy decides from (queue, now, predicted costs) and what it has seen arrive; it reads no clock. The server's is
`policies.lookahead.LookaheadPolicy`; `policies/baselines.py` has those of other systems.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from elastic.profile.tables import Modality
from elastic.serve.batching import Costs, Work


class Limit(Enum):
    """What kept the policy from a larger submodel."""

    NONE = "nothing larger is on the front"
    DEADLINE = "a larger submodel would have missed this batch's deadline"
    BACKLOG = "a larger submodel would have made others, waiting or expected, late or less accurate"


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

    def headroom(self, now_ms: float) -> float:
        """What predictions are multiplied with before a promise rests on them."""
        return 1.0

    def notice(self, arriving: Sequence[Work]) -> None:  # noqa: B027 (most policies do not look ahead)
        """Hear of work once, when it arrives and before it is admitted or refused."""

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


def floor_plan(queue: Sequence[Work], start_ms: float, costs: Costs) -> FloorPlan:
    """Serve everything at its fastest allowed level, earliest deadline first, in the largest batches that fit."""
    first, late, finish_ms = None, None, start_ms
    for works, level, done_ms in _floor_steps(queue, start_ms, costs):
        first = first or Run(level, tuple(works), done_ms - start_ms, Limit.BACKLOG)
        late = late or (works[0] if done_ms > works[0].deadline_ms else None)
        finish_ms = done_ms
    return FloorPlan(first, late, finish_ms)


def is_on_time(queue: Sequence[Work], start_ms: float, costs: Costs) -> bool:
    """Whether the floor plan finishes everything in time."""
    return all(done_ms <= works[0].deadline_ms for works, _, done_ms in _floor_steps(queue, start_ms, costs))


def _floor_steps(queue: Sequence[Work], start_ms: float, costs: Costs) -> Iterator[tuple[Sequence[Work], int, float]]:
    """The floor plan's batches, their levels, and when each is done."""
    groups: dict[tuple[Modality, int], list[Work]] = {}
    for work in queue:
        groups.setdefault((work.modality, costs.cheapest[work.modality][work.floor]), []).append(work)
    now_ms = start_ms
    served = dict.fromkeys(groups, 0)
    while groups:
        key = min(groups, key=lambda group: groups[group][served[group]].urgency)
        waiting, begin = groups[key], served[key]
        latest_ms = waiting[begin].deadline_ms
        for other, rest in groups.items():
            if other != key:
                latest_ms = min(latest_ms, rest[served[other]].deadline_ms - costs.ms(*other, 1))
        size = max(1, min(costs.fit(*key, latest_ms - now_ms), len(waiting) - begin))
        now_ms += costs.ms(*key, size)
        yield waiting[begin : begin + size], key[1], now_ms
        served[key] += size
        if served[key] == len(waiting):
            del groups[key]
