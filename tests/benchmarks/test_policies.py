import pytest

from benchmarks.policies import larger
from benchmarks.policies.live import turns
from elastic.submodel import Space

SPACE = Space(
    depth=12, ffn_dims=tuple(int(1536 * share) for share in larger.PAPER_RECALL), embed_dims=(larger.EMBED_DIM,)
)


def test_what_is_served_live_grows_in_size_and_in_claimed_quality() -> None:
    chosen = larger.candidates(SPACE)
    assert chosen[0] == SPACE.smallest
    assert chosen[-1] == SPACE.full
    sizes = [sum(submodel.ffn_dims) for submodel in chosen]
    qualities = [larger.recall(SPACE, submodel) for submodel in chosen]
    assert len(chosen) == 7
    assert sizes == sorted(set(sizes))
    assert qualities == sorted(set(qualities))


def test_granularities_have_the_papers_quality_and_mixes_one_between() -> None:
    small, between, medium = larger.candidates(SPACE)[:3]
    assert larger.recall(SPACE, small) == pytest.approx(0.7172)
    assert larger.recall(SPACE, medium) == pytest.approx(0.7449)
    assert larger.recall(SPACE, between) == pytest.approx((0.7172 + 0.7449) / 2)


def test_every_policy_has_one_turn_for_each_seed_in_an_order_of_its_own() -> None:
    policies = tuple("abcdefgh")
    found = list(turns(policies, seeds=3))
    orders = [tuple(policy for at, policy in found if at == seed) for seed in range(3)]
    assert [sorted(order) for order in orders] == [sorted(policies)] * 3
    assert len(set(orders)) == 3
