"""Policies by name: the server's and those it is compared with."""

from collections.abc import Callable, Mapping

from elastic.errors import ConfigError
from elastic.profile.tables import Modality
from elastic.serve.batching import Front
from elastic.serve.policies.baselines import ClipperAimd, InfaasMinCost, MaxAccuracy, MaxBatch, SlackFit, Static
from elastic.serve.policies.lookahead import LookaheadPolicy
from elastic.serve.policy import Policy

Fronts = Mapping[Modality, Front]

_PLAIN: Mapping[str, Callable[[Fronts], Policy]] = {
    "lookahead": lambda fronts: LookaheadPolicy(),
    "slackfit": SlackFit,
    "max_accuracy": lambda fronts: MaxAccuracy(),
    "max_batch": lambda fronts: MaxBatch(),
    "infaas_min_cost": lambda fronts: InfaasMinCost(),
}
_OF_ONE_LEVEL: Mapping[str, Callable[[int], Policy]] = {"static": Static, "clipper_aimd": ClipperAimd}

SERVED = "lookahead"
"""The server's own."""
POLICIES = (*_PLAIN, *(f"{name}={end}" for name in _OF_ONE_LEVEL for end in ("smallest", "largest")))
"""What is compared by default."""


def policy_maker(name: str, fronts: Fronts) -> Callable[[], Policy]:
    """Makes a policy by its name; those of one level take it behind a sign: `static=largest`, `static=XL`.

    Raises:
        ConfigError: there is none, or the front of images has no such level.
    """
    kind, _, level = name.partition("=")
    if kind in _PLAIN and not level:
        return lambda: _PLAIN[kind](fronts)
    if kind in _OF_ONE_LEVEL and level:
        number = _level(level, fronts["image"])
        return lambda: _OF_ONE_LEVEL[kind](number)
    known = ", ".join([*_PLAIN, *(f"{name}=LEVEL" for name in _OF_ONE_LEVEL)])
    raise ConfigError("policies", name, f"must be one of {known}")


def _level(name: str, front: Front) -> int:
    names = [level.name for level in front.levels]
    ends = {"smallest": 0, "largest": len(names) - 1}
    if name not in ends and name not in names:
        raise ConfigError(
            "policies", name, f"is no level of the front; those are smallest, largest, {', '.join(names)}"
        )
    return ends[name] if name in ends else names.index(name)
