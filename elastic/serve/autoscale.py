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
from elastic.serve.load import Load


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

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise ConfigError("max_replicas", self.max_replicas, "must be positive and at least min_replicas")
        for name in ("target_attainment", "usable", "headroom"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(name, getattr(self, name), "must be in (0, 1]")
        for name in ("window_s", "forget_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(name, getattr(self, name), "must be positive")


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many replicas there are."""

    running: int
    target: int
    """As many as were wanted last: more of them start, or some stop, while it differs."""


@dataclass(frozen=True, slots=True)
class ScalingState:
    """What the scaler remembers from one decision to the next."""

    fleet: Fleet = Fleet(0, 0)
    changed_s: float = -math.inf
    """When the fleet last was another."""
    pressed_s: float | None = None
    """Since when too much is lost."""
    spare_s: float | None = None
    """Since when fewer replicas would do."""
    spare: int = 0
    """The most that were needed at any time since then."""
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
    def decide(self, load: Load, fleet: Fleet, state: ScalingState, now_s: float) -> Decision:
        """The number of replicas wanted from now on."""


class DeficitScaler(Scaler):
    """Grows on lost attainment or quality, by the size of the load; shrinks when full quality fits into less."""

    LOWEST_USABLE = 0.1
    """Nothing that is seen at less than this is blamed on too few replicas."""
    STEP = 0.9
    """What of a load that proved too much is taken for usable."""

    def __init__(self, rules: ScalingRules) -> None:
        self.rules = rules

    def decide(self, load: Load, fleet: Fleet, state: ScalingState, now_s: float) -> Decision:
        """The number of replicas wanted from now on."""
        rules = self.rules
        if fleet.running and not load.span_ms:
            return Decision(self._clamp(fleet.target), state, "no replica has reported yet")
        state = self._follow(load, fleet, state, now_s)
        if self._is_idle(load, state, now_s):
            return Decision(0, state, "nothing was asked for a while")
        if fleet.running == 0:
            wanted = self._clamp(max(fleet.target, 1 if load.waiting else 0))
            return Decision(wanted, state, "started for the first requests")
        if state.pressed_s is not None and now_s - state.pressed_s >= rules.up_after_s:
            return self._grow(load, fleet, state, now_s)
        if state.spare_s is not None and now_s - state.spare_s >= rules.down_after_s:
            return Decision(self._clamp(state.spare), state, "fewer would serve everything at full quality")
        return Decision(self._clamp(fleet.target), state, "enough")

    def usable(self, state: ScalingState, now_s: float) -> float:
        """How much full-quality work a replica is trusted with now."""
        if state.usable is None:
            return self.rules.usable
        kept = 0.5 ** ((now_s - state.learned_s) / self.rules.forget_s)
        return self.rules.usable + (state.usable - self.rules.usable) * kept

    def _follow(self, load: Load, fleet: Fleet, state: ScalingState, now_s: float) -> ScalingState:
        """Note since when what holds."""
        if fleet != state.fleet:
            state = replace(state, fleet=fleet, changed_s=now_s, spare_s=None)
        pressed = self._is_pressed(load)
        may_shrink = not pressed and self._is_settled(fleet, state, now_s)
        spare = self._spare(load, state, now_s) if may_shrink else fleet.running
        return replace(
            state,
            pressed_s=_since(pressed, state.pressed_s, now_s),
            spare=max(spare, state.spare) if state.spare_s is not None else spare,
            spare_s=_since(spare < fleet.running, state.spare_s, now_s),
            idle_s=_since(not load.requests and not load.waiting, state.idle_s, now_s),
        )

    def _is_pressed(self, load: Load) -> bool:
        """More is lost than the rules allow, and not by replicas that mostly wait."""
        rules = self.rules
        if load.busy < rules.min_busy:
            return False
        refusing = load.missed >= rules.min_missed and load.attainment < rules.target_attainment
        return refusing or load.quality_loss > rules.max_quality_loss

    def _is_settled(self, fleet: Fleet, state: ScalingState, now_s: float) -> bool:
        """Whether the window holds nothing from before the last change."""
        return fleet.running == fleet.target and now_s - state.changed_s >= self.rules.window_s

    def _is_idle(self, load: Load, state: ScalingState, now_s: float) -> bool:
        if self.rules.min_replicas or state.idle_s is None:
            return False
        return now_s - state.idle_s >= self.rules.zero_after_s

    def _needed(self, load: Load, running: int, usable: float) -> int:
        """Replicas that would serve all that was asked at full quality, each busy for a share of `usable`."""
        return math.ceil(running * load.full_work / usable - 1e-9)

    def _spare(self, load: Load, state: ScalingState, now_s: float) -> int:
        usable = self.rules.headroom * self.usable(state, now_s)
        return max(1, self.rules.min_replicas, self._needed(load, state.fleet.running, usable))

    def _grow(self, load: Load, fleet: Fleet, state: ScalingState, now_s: float) -> Decision:
        """To what the work needs; if it seemed to need no more, the estimate was wrong, and that is remembered."""
        usable = self.usable(state, now_s)
        if self._is_settled(fleet, state, now_s) and load.full_work < usable:
            usable = max(self.LOWEST_USABLE, self.STEP * load.full_work)
            state = replace(state, usable=usable, learned_s=now_s)
        needed = max(fleet.target, self._needed(load, fleet.running, usable))
        lost = f"{load.attainment:.1%} met, {load.quality_loss:.1%} of quality lost"
        reason = f"{lost}, {load.full_work:.0%} of each replica's time asked for"
        return Decision(self._clamp(needed), state, reason)

    def _clamp(self, wanted: int) -> int:
        return min(max(wanted, self.rules.min_replicas), self.rules.max_replicas)


def _since(holds: bool, since_s: float | None, now_s: float) -> float | None:
    if not holds:
        return None
    return now_s if since_s is None else since_s
