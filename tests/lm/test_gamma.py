"""The formula against a simulation, the policy against rounds whose costs and acceptance are made up."""

import random
from collections.abc import Callable

import pytest

from elastic.lm.gamma import MAX_GAMMA, PROBE_EVERY, AdaptiveGamma, FixedGamma, expected_tokens, speedup


def accepted(chance: float, gamma: int, rng: random.Random) -> int:
    count = 0
    while count < gamma and rng.random() < chance:
        count += 1
    return count


def play(
    policy: AdaptiveGamma, rounds: int, chance: float, seconds_of: Callable[[int], float], seed: int = 0
) -> list[int]:
    """The lengths that a policy chooses when each draft token stands with a chance and rounds take what is said."""
    rng, chosen = random.Random(seed), []
    for _ in range(rounds):
        gamma = policy.choose()
        policy.observe(gamma, [accepted(chance, gamma, rng)], seconds_of(gamma))
        chosen.append(gamma)
    return chosen


@pytest.mark.parametrize(("rate", "gamma"), [(0.0, 4), (0.6, 3), (0.9, 8), (1.0, 5)])
def test_the_expected_tokens_of_a_draft_are_those_of_a_simulation(rate: float, gamma: int):
    rng = random.Random(0)
    mean = sum(accepted(rate, gamma, rng) + 1 for _ in range(20_000)) / 20_000
    assert mean == pytest.approx(expected_tokens(rate, gamma), abs=0.06)


def test_the_speed_up_is_the_formula():
    a, c, g = 0.8, 0.4, 3
    assert speedup(a, c, g) == pytest.approx((1 - a ** (g + 1)) / ((1 - a) * (c * g + 1)))
    assert speedup(a, c, 0) == 1


@pytest.mark.parametrize(("chance", "cost"), [(0.9, 0.3), (0.75, 0.3), (0.95, 0.15), (0.85, 0.55)])
def test_what_it_settles_on_is_the_best_length(chance: float, cost: float):
    chosen = play(AdaptiveGamma(), 3000, chance, lambda gamma: 1 + cost * gamma)[1000:]
    mean = sum(speedup(chance, cost, gamma) for gamma in chosen) / len(chosen)
    assert mean > 0.97 * max(speedup(chance, cost, gamma) for gamma in range(MAX_GAMMA + 1))


def test_what_longer_drafts_cost_is_measured_and_not_only_extrapolated():
    steep = {0: 1.0, 1: 1.2, 2: 1.4, 3: 1.6, 4: 1.8}
    chosen = play(AdaptiveGamma(), 1000, 0.9, lambda gamma: steep.get(gamma, 9.0))
    assert max(set(chosen[200:]), key=chosen[200:].count) == 4


def test_drafts_that_lose_are_not_made_but_tried_again():
    chosen = play(AdaptiveGamma(), 1000, 0.3, lambda gamma: 1 + 0.6 * gamma)[200:]
    tried = len(chosen) - chosen.count(0)
    assert 0 < tried <= len(chosen) / PROBE_EVERY + 1


def test_drafts_that_begin_to_pay_are_made_again():
    policy = AdaptiveGamma()
    play(policy, 300, 0.2, lambda gamma: 1 + 0.4 * gamma)
    assert policy.choose() == 0
    chosen = play(policy, 2000, 0.95, lambda gamma: 1 + 0.2 * gamma)[-PROBE_EVERY:]
    assert chosen.count(0) == 1, "and only measuring rounds are plain"
    best = max(range(MAX_GAMMA + 1), key=lambda gamma: speedup(0.95, 0.2, gamma))
    assert speedup(0.95, 0.2, max(chosen)) > 0.95 * speedup(0.95, 0.2, best), "what was dear once is tried again"


def test_it_stops_when_drafts_become_dear():
    policy = AdaptiveGamma()
    assert min(play(policy, 60, 0.9, lambda gamma: 1 + 0.2 * gamma)[-20:]) > 0
    assert play(policy, 600, 0.9, lambda gamma: 1 + 2.0 * gamma)[-PROBE_EVERY:].count(0) == PROBE_EVERY - 1


def test_an_outlier_does_not_change_the_choice():
    policy = AdaptiveGamma()
    play(policy, 300, 0.9, lambda gamma: 1 + 0.3 * gamma)
    before = policy.choose()
    policy.observe(before, [before], 100.0)
    assert policy.choose() > 0


def test_nothing_accepted_or_all_of_it_gives_rates_near_the_ends():
    for chance, bounds in ((0.0, (0, 0.15)), (1.0, (0.95, 1))):
        policy = AdaptiveGamma()
        play(policy, 200, chance, lambda gamma: 1 + 0.3 * gamma)
        assert bounds[0] <= policy.acceptance_rate <= bounds[1]


def test_a_fixed_length_stays():
    policy = FixedGamma(3)
    policy.observe(3, [0], 9.0)
    assert (policy.choose(), policy.limit) == (3, 3)
