"""Names lead to policies."""

import pytest

from elastic.errors import ConfigError
from elastic.serve.batching import Front, Level
from elastic.serve.policies.baselines import ClipperAimd, MaxBatch, SlackFit, Static
from elastic.serve.policies.lookahead import LookaheadPolicy
from elastic.serve.policies.registry import policy_maker
from elastic.submodel import Submodel

FRONTS = {
    "image": Front(
        tuple(
            Level(Submodel((ffn,)), name, (ms, 1.5 * ms), {8: quality})
            for ffn, name, ms, quality in ((1, "S", 4.0, 0.5), (2, "XL", 10.0, 0.8))
        )
    )
}


@pytest.mark.parametrize(
    ("name", "kind", "level"),
    [
        ("lookahead", LookaheadPolicy, None),
        ("slackfit", SlackFit, None),
        ("max_batch", MaxBatch, None),
        ("static=smallest", Static, 0),
        ("static=XL", Static, 1),
        ("clipper_aimd=largest", ClipperAimd, 1),
    ],
)
def test_a_name_makes_its_policy(name: str, kind: type, level: int | None):
    made = policy_maker(name, FRONTS)()
    assert type(made) is kind
    assert level is None or made.level == level  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["", "best", "static", "static=M", "lookahead=XL"])
def test_an_unknown_name_is_refused(name: str):
    with pytest.raises(ConfigError):
        policy_maker(name, FRONTS)


def test_each_replica_gets_a_policy_of_its_own():
    make = policy_maker("clipper_aimd=S", FRONTS)
    assert make() is not make()
