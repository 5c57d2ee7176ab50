"""A simulated fleet whose size changes: what the scaler is told, what became of the fleet, and a rival scaler."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from elastic.profile.tables import Modality
from elastic.serve.batching import Front, Work
from elastic.serve.policy import Run
from elastic.serve.scaling.load import Load, LoadMeter
from elastic.serve.scaling.scaler import Decision, FleetSize, Scaler, ScalingState


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """Who decides how many replicas there are, and how fast that happens."""

    scaler: Callable[[], Scaler]
    until_ms: float
    """Decides until then."""
    start_ms: float = 8_000.0
    """From the wish for a replica to its first request."""
    tick_ms: float = 500.0
    """Between decisions."""
    window_s: float = 10.0
    """What the load reaches back over."""


class Watch:
    """Measures the load as the replicas of a server do, and asks the scaler."""

    def __init__(self, scaling: Scaling, fronts: Mapping[Modality, Front], overhead_ms: float) -> None:
        self._overhead_ms = overhead_ms
        self._scaler = scaling.scaler()
        self._fronts, self._meter = fronts, LoadMeter(1000 * scaling.window_s, 0.0)
        self._meter.choose_from(fronts)
        self._state = ScalingState()
        self._target: int | None = None

    def missed(self, work: Work, now_ms: float) -> None:
        """A request was refused or expired."""
        self._meter.ended({work.modality: 1}, work.budget_ms - self._overhead_ms, False, now_ms)

    def ran(self, run: Run, took_ms: float, now_ms: float) -> None:
        """A batch is done, and with it its requests."""
        modality = run.works[0].modality
        levels = self._fronts[modality].levels
        self._meter.ran(levels[run.level].batch_ms[len(run.works) - 1], took_ms, now_ms)
        for work in run.works:
            met = now_ms <= work.deadline_ms
            ideals = self._meter.ended({modality: 1}, work.budget_ms - self._overhead_ms, met, now_ms)
            for best in ideals.values():
                self._meter.answered(levels[best.level].full_quality, levels[run.level].full_quality, now_ms)

    def wanted(self, up_ms: Sequence[float], waiting: int, now_ms: float) -> int:
        """How many replicas there should be, when these came up at these times."""
        load = self._meter.load(now_ms, waiting)
        # Each replica has watched for as long as it was up: their sum, not the one span of the meter.
        load.span_ms = sum(min(load.span_ms, now_ms - at_ms) for at_ms in up_ms)
        size = FleetSize(len(up_ms), len(up_ms) if self._target is None else self._target)
        decision = self._scaler.decide(load, size, self._state, now_ms / 1000)
        self._state, self._target = decision.state, decision.wanted
        return decision.wanted


@dataclass(slots=True)
class History:
    """How many replicas there were, from the beginning."""

    first: int
    events: list[tuple[float, int, int]] = field(default_factory=list)
    """Time, and the change of replicas that run and of replicas that are paid for (from start to exit)."""
    wishes: list[tuple[float, int]] = field(default_factory=list)
    """Time and number, whenever another number was wanted than before."""

    def changed(self, now_ms: float, *, running: int = 0, paid: int = 0) -> None:
        """A replica came up, went down, was started or is gone."""
        self.events.append((now_ms, running, paid))

    def wanted(self, now_ms: float, number: int) -> None:
        """The scaler has decided."""
        if number != (self.wishes[-1][1] if self.wishes else self.first):
            self.wishes.append((now_ms, number))

    def replica_seconds(self, until_ms: float) -> float:
        """What was paid for up to a time."""
        first = self.first * until_ms
        return (first + sum(paid * max(0.0, until_ms - at_ms) for at_ms, _, paid in self.events)) / 1000

    def running(self, at_ms: np.ndarray) -> np.ndarray:
        """Replicas that served at each of these times."""
        times = np.array([time for time, _, _ in self.events])
        counts = np.cumsum([self.first, *(running for _, running, _ in self.events)])
        return counts[np.searchsorted(times, at_ms, side="right")]

    @property
    def turns(self) -> int:
        """How often the wish for more became one for fewer, or the reverse."""
        steps = np.sign(np.diff([self.first, *(number for _, number in self.wishes)]))
        return int((steps[1:] != steps[:-1]).sum())


class OngoingRequests(Scaler):
    """So many requests in progress per replica, as Ray Serve decides unless told otherwise.

    Source: Ray Serve 2.60's default policy with its default settings. The mean over the look-back period over the
    target, once that has been on one side of the present number for the delay.
    """

    def __init__(
        self,
        min_replicas: int,
        max_replicas: int,
        *,
        target: float = 2.0,
        look_back_s: float = 30.0,
        up_after_s: float = 30.0,
        down_after_s: float = 600.0,
    ) -> None:
        self.min_replicas, self.max_replicas, self.target = min_replicas, max_replicas, target
        self.look_back_s, self.up_after_s, self.down_after_s = look_back_s, up_after_s, down_after_s
        self._seen: deque[tuple[float, float]] = deque()
        self._since_s: dict[int, float] = {}

    def decide(self, load: Load, size: FleetSize, state: ScalingState, now_s: float) -> Decision:
        """The number of replicas wanted from now on; what it remembers is in the scaler itself."""
        self._seen.append((now_s, load.waiting))
        while self._seen[0][0] < now_s - self.look_back_s:
            self._seen.popleft()
        if size.running == 0:
            return Decision(max(size.target, self.min_replicas, int(load.waiting > 0)), state, "first requests")
        ongoing = sum(waiting for _, waiting in self._seen) / len(self._seen)
        wanted = min(max(int(np.ceil(ongoing / self.target)), self.min_replicas), self.max_replicas)
        side = int(np.sign(wanted - size.target))
        self._since_s = {side: self._since_s.get(side, now_s)}
        delay_s = self.up_after_s if side > 0 else self.down_after_s
        if side and now_s - self._since_s[side] >= delay_s:
            self._since_s = {}
            return Decision(wanted, state, f"{ongoing:.1f} requests in progress")
        return Decision(size.target, state, "enough")
