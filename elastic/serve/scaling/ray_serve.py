"""Between Ray Serve's autoscaling and `scaler.py`: what replicas record, and the policy that the controller calls.

Serve asks every replica for `record_autoscaling_stats`, sends what it says to the controller, and calls the policy
there ten times a second with all of it. Nothing of Ray is imported here, so a test can be the controller.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Protocol, runtime_checkable

from elastic.serve.scaling.load import Load
from elastic.serve.scaling.scaler import DeficitScaler, FleetSize, ScalingRules, ScalingState

logger = logging.getLogger("ray.serve")
"""The controller writes this one to its log file."""

POLICY = f"{__name__}:ReplicaPolicy"
"""Where Serve imports the policy from."""
REPORT_S = 1.0
"""How often replicas report; Serve's default would have the controller ten seconds late."""


@runtime_checkable
class Sample(Protocol):
    """One recorded value."""

    value: float


@runtime_checkable
class Context(Protocol):
    """What Serve tells a policy, as far as it matters here."""

    current_num_replicas: int
    target_num_replicas: int
    current_time: float | None

    @property
    def raw_metrics(self) -> Mapping[str, Mapping[Any, Sequence[Sample]]] | None:
        """Values by metric and replica, oldest first."""


class ReplicaPolicy:
    """A Serve autoscaling policy; made once in the controller, with the fields of `ScalingRules`."""

    def __init__(self, **rules: Any) -> None:
        self._scaler = DeficitScaler(ScalingRules(**rules))
        # Kept here and not in Serve's policy state, which one fast path of Serve hands back unread.
        self._state = ScalingState()

    def __call__(self, ctx: Context) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted; Serve wants a dictionary beside it."""
        assert ctx.current_time is not None, "Serve always says when"
        size = FleetSize(ctx.current_num_replicas, ctx.target_num_replicas)
        decision = self._scaler.decide(total_load(ctx), size, self._state, ctx.current_time)
        self._state = decision.state
        if decision.wanted != size.target:
            logger.info("from %d replicas to %d: %s", size.target, decision.wanted, decision.reason)
        return decision.wanted, {}


def record(load: Load) -> dict[str, float]:
    """What a replica records; the reverse of `total_load`."""
    return {name: float(value) for name, value in asdict(load).items()}


def total_load(ctx: Context) -> Load:
    """The newest loads of all replicas that have recorded any, together."""
    metrics = ctx.raw_metrics or {}
    newest: dict[Any, Load] = {}
    for name in (field.name for field in fields(Load)):
        for replica, samples in metrics.get(name, {}).items():
            if samples:
                setattr(newest.setdefault(replica, Load()), name, samples[-1].value)
    return sum(newest.values(), Load())


def autoscaling_config(rules: ScalingRules, first: int) -> dict[str, Any]:
    """Serve's settings under which the policy alone decides: it has its own delays."""
    return {
        "min_replicas": rules.min_replicas,
        "max_replicas": rules.max_replicas,
        "initial_replicas": min(max(first, rules.min_replicas), rules.max_replicas),
        "upscale_delay_s": 0.0,
        "downscale_delay_s": 0.0,
        "metrics_interval_s": REPORT_S,
        "policy": {"policy_function": POLICY, "policy_kwargs": asdict(rules)},
    }
