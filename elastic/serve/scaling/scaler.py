"""How many replicas serve: degrade first, then refuse, then grow.

A replica under more load than it can answer at full quality answers less accurately (seconds), then refuses
(milliseconds), and neither shows in its queue. So the scaler looks at what is lost, attainment and quality, to decide
*that* the fleet must grow, and at the work that was asked for to decide *how far*. Pure: sums, a state and a time in,
a number and a state out. No torch, no ray, no clock.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from elastic.errors import ConfigError
from elastic.serve.scaling.load import Load


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingRules:
    """When the fleet grows and shrinks."""

    min_replicas: int = 1
    """Never fewer; 0 lets an idle server stop all of them."""
    max_replicas: int = 1
    """Never more."""
    target_attainment: float = 0.99
    """Share of requests that must meet their objective."""
    max_quality_loss: float = 0.01
    """Share of the possible quality that answers may go without, on average."""
    usable: float = 0.7
    """Share of a replica's time that full-quality work may fill before it is taken for too much."""
    headroom: float = 0.7
    """The fleet shrinks only to a size at which work fills less than this share of what is usable."""
    window_s: float = 10.0
    """What the sums reach back over."""
    up_after_s: float = 2.0
    """How long too much must be lost before the fleet grows."""
    down_after_s: float = 60.0
    """How long fewer replicas must suffice before it shrinks."""
    zero_after_s: float = 300.0
    """How long nothing must be asked before the last replica stops, if `min_replicas` is 0."""
    forget_s: float = 1800.0
    """Half-life of what was learned about how much load is too much."""
    min_busy: float = 0.2
    """Below this share of busy time nothing that is lost is put down to load."""
    min_missed: int = 3
    """Fewer misses in the window are chance."""

    @property
    def sizes(self) -> str:
        """How many replicas there can be, for messages."""
        return f"{self.min_replicas} to {self.max_replicas}"

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ConfigError("max_replicas", self.max_replicas, "must be positive and at least min_replicas")
        for name in ("target_attainment", "usable", "headroom"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(name, getattr(self, name), "must be in (0, 1]")
        for name in ("window_s", "forget_s", "down_after_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, getattr(self, name), "must be positive")


@dataclass(frozen=True, slots=True)
class FleetSize:
    """How many replicas there are."""

    running: int
    target: int
    """As many as were wanted last: more of them start, or some stop, while it differs."""


@dataclass(frozen=True, slots=True)
class ScalingState:
    """What the scaler remembers from one decision to the next."""

    size: FleetSize = FleetSize(0, 0)
    changed_s: float = -math.inf
    """When the fleet last was another."""
    pressed_s: float | None = None
    """Since when too much is lost."""
    most: float = 0.0
    """The most work that was asked for since then, at the present size."""
    needs: tuple[tuple[int, int], ...] = ()
    """The most replicas that were needed in each of the last stretches of time, by the number of the stretch."""
    idle_s: float | None = None
    """Since when nothing is asked."""
    usable: float | None = None
    """Load at which too much was lost although it looked usable, if that was seen."""
    learned_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What is wanted, and why."""

    wanted: int
    state: ScalingState
    reason: str


class Scaler(ABC):
    """Decides how many replicas there should be."""

    @abstractmethod
    def decide(self, load: Load, size: FleetSize, state: ScalingState, now_s: float) -> Decision:
        """The number of replicas wanted from now on."""


class DeficitScaler(Scaler):
    """Grows on lost attainment or quality, by the size of the load; shrinks when full quality fits into less."""

    LOWEST_USABLE = 0.1
    """Nothing that is seen at less than this is blamed on too few replicas."""
    STEP = 0.9
    """What of a load that proved too much is taken for usable."""
    STRETCHES = 6
    """Parts of `down_after_s` that needs are remembered by; the fleet shrinks up to one of them later."""

    def __init__(self, rules: ScalingRules) -> None:
        self.rules = rules

    def decide(self, load: Load, size: FleetSize, state: ScalingState, now_s: float) -> Decision:
        """The number of replicas wanted from now on."""
        rules = self.rules
        if size.running and not load.span_ms:
            return Decision(self._clamp(size.target), state, "no replica has reported yet")
        state = self._follow(load, size, state, now_s)
        if self._is_idle(load, state, now_s):
            return Decision(0, state, "nothing was asked for a while")
        if size.running == 0:
            wanted = self._clamp(max(size.target, 1 if load.waiting else 0))
            return Decision(wanted, state, "started for the first requests")
        if state.pressed_s is not None and now_s - state.pressed_s >= rules.up_after_s:
            return self._grow(load, size, state, now_s)
        enough = self._enough(state, now_s)
        if enough is not None and enough < size.target:
            return Decision(self._clamp(enough), state, "fewer would serve everything at full quality")
        return Decision(self._clamp(size.target), state, "enough")

    def usable(self, state: ScalingState, now_s: float) -> float:
        """How much full-quality work a replica is trusted with now."""
        if state.usable is None:
            return self.rules.usable
        kept = 0.5 ** ((now_s - state.learned_s) / self.rules.forget_s)
        return self.rules.usable + (state.usable - self.rules.usable) * kept

    def _follow(self, load: Load, size: FleetSize, state: ScalingState, now_s: float) -> ScalingState:
        """Note since when what holds."""
        if size != state.size:
            state = replace(state, size=size, changed_s=now_s, most=0.0)
        pressed = self._is_pressed(load)
        usable = self.rules.headroom * self.usable(state, now_s)
        needed = max(1, _replicas(load.work, usable), size.target if pressed else 0)
        return replace(
            state,
            pressed_s=_since(pressed, state.pressed_s, now_s),
            most=max(load.work, state.most) if pressed else 0.0,
            needs=self._noted(state.needs, needed, now_s),
            # Without a replica nobody knows, and one that starts deserves the whole time.
            idle_s=_since(size.running > 0 and not load.requests and not load.waiting, state.idle_s, now_s),
        )

    def _is_pressed(self, load: Load) -> bool:
        """More is lost than the rules allow, and not by replicas that mostly wait."""
        rules = self.rules
        if load.busy < rules.min_busy:
            return False
        refusing = load.missed >= rules.min_missed and load.attainment < rules.target_attainment
        return refusing or load.quality_loss > rules.max_quality_loss

    def _is_settled(self, size: FleetSize, state: ScalingState, now_s: float) -> bool:
        """Whether the window holds nothing from before the last change."""
        return size.running == size.target and now_s - state.changed_s >= self.rules.window_s

    def _is_idle(self, load: Load, state: ScalingState, now_s: float) -> bool:
        if self.rules.min_replicas or state.idle_s is None:
            return False
        return now_s - state.idle_s >= self.rules.zero_after_s

    def _noted(self, needs: tuple[tuple[int, int], ...], needed: int, now_s: float) -> tuple[tuple[int, int], ...]:
        """The needs with one more, and without those that are longer ago than `down_after_s`."""
        now = self._stretch(now_s)
        past = tuple(one for one in needs if now - self.STRETCHES <= one[0] < now)
        return (*past, (now, max([needed, *(most for number, most in needs if number == now)])))

    def _enough(self, state: ScalingState, now_s: float) -> int | None:
        """The most that were needed at any time in the last `down_after_s`; None if that is not known yet."""
        if state.needs[0][0] > self._stretch(now_s) - self.STRETCHES:
            return None
        return max(most for _, most in state.needs)

    def _stretch(self, now_s: float) -> int:
        return int(now_s * self.STRETCHES // self.rules.down_after_s)

    def _grow(self, load: Load, size: FleetSize, state: ScalingState, now_s: float) -> Decision:
        """To what the work needs; if it seemed to need no more, the estimate was wrong, and that is remembered."""
        usable, work = self.usable(state, now_s), load.work
        if self._is_settled(size, state, now_s):
            work = state.most
            if work < usable * size.running:
                usable = max(self.LOWEST_USABLE, self.STEP * work / size.running)
                state = replace(state, usable=usable, learned_s=now_s)
        needed = max(size.target, _replicas(work, usable))
        lost = f"{load.attainment:.1%} met, {load.quality_loss:.1%} of quality lost"
        reason = f"{lost}, work for {load.work / usable:.1f} replicas"
        return Decision(self._clamp(needed), state, reason)

    def _clamp(self, wanted: int) -> int:
        return min(max(wanted, self.rules.min_replicas), self.rules.max_replicas)


def _replicas(work: float, usable: float) -> int:
    """That do the work at full quality, each busy for a share of `usable`."""
    return math.ceil(work / usable - 1e-9)


def _since(holds: bool, since_s: float | None, now_s: float) -> float | None:
    if not holds:
        return None
    return now_s if since_s is None else since_s
