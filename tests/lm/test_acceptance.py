"""The rule keeps the target's distribution: every outcome of the chances is gone through, and counted exactly."""

import itertools

import torch

from elastic.lm.acceptance import Accepted, accept_greedy, accept_sampled, residual
from elastic.lm.sampling import Sampling, draw

# Multiples of 1/12 whose ratios and residuals are so too: chances at the middles of 12 equal parts then decide every
# question as often as their probability says, and 12^n combinations of them are the distribution itself.
PARTS = 12
FIRST_P, FIRST_Q = (3, 6, 3), (6, 3, 3)
NEXT_P = {0: (6, 3, 3), 1: (3, 6, 3), 2: (4, 4, 4)}
NEXT_Q = {0: (3, 6, 3), 1: (12, 0, 0), 2: (4, 4, 4)}
LAST_P = {0: (2, 4, 6), 1: (12, 0, 0), 2: (3, 0, 9)}


def every_outcome(count: int) -> torch.Tensor:
    middles = (torch.arange(PARTS, dtype=torch.float64) + 0.5) / PARTS
    return torch.cartesian_prod(*[middles] * count)


def draft_two(chances: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two tokens drawn by two chances, the distributions they came from, and the target's at three places."""
    first_q, first_p = (torch.tensor(row).double().expand(len(chances), -1) / PARTS for row in (FIRST_Q, FIRST_P))
    one = draw(first_q, chances[:, 0])
    next_q = table(NEXT_Q)[one]
    two = draw(next_q, chances[:, 1])
    target = torch.stack([first_p, table(NEXT_P)[one], table(LAST_P)[two]], dim=1)
    return torch.stack([one, two], dim=1), torch.stack([first_q, next_q], dim=1), target


def judge(
    drafted: torch.Tensor, draft: torch.Tensor, target: torch.Tensor, stands: torch.Tensor, follows: torch.Tensor
) -> Accepted:
    """Accept as many as stand; `follows` is what draws the next token, wherever that is."""
    count, gamma = drafted.shape
    stands = torch.cat([stands, torch.full((count, 1), torch.nan, dtype=torch.float64)], dim=1)
    return accept_sampled(
        drafted, draft, target, stands, follows[:, None].expand(-1, gamma + 1), torch.full((count,), gamma)
    )


def table(rows: dict[int, tuple[int, ...]]) -> torch.Tensor:
    return torch.tensor([rows[token] for token in sorted(rows)], dtype=torch.float64) / PARTS


def test_the_tokens_of_a_round_have_the_target_s_joint_distribution():
    chances = every_outcome(5)  # two draft tokens, two decisions, one token behind
    count = len(chances)
    drafted, draft, target = draft_two(chances[:, :2])
    one, two = drafted.unbind(1)
    found = judge(drafted, draft, target, chances[:, 2:4], chances[:, 4])
    # A round that ends early leaves its next tokens to later rounds, which draw from the target whatever came before.
    joint = torch.zeros(3, 3, 3, dtype=torch.float64)
    p_next, p_last = table(NEXT_P), table(LAST_P)
    for accepted in range(3):
        rows = found.counts == accepted
        tokens = [*[one[rows], two[rows]][:accepted], found.following[rows]]
        for path in itertools.product(range(3), repeat=accepted + 1):
            weight = torch.stack([column == token for column, token in zip(tokens, path, strict=True)]).all(0).sum()
            mass = weight.double() / count
            if accepted == 0:
                joint[path[0]] += mass * p_next[path[0]][:, None] * p_last
            elif accepted == 1:
                joint[path[0], path[1]] += mass * p_last[path[1]]
            else:
                joint[path] += mass
    expected = (torch.tensor(FIRST_P).double() / PARTS)[:, None, None] * p_next[:, :, None] * p_last[None]
    torch.testing.assert_close(joint, expected, rtol=0, atol=1e-12)
    assert set(found.counts.tolist()) == {0, 1, 2}


def test_places_that_are_reached_again_keep_the_joint_distribution_at_their_old_chances():
    """Two tokens are asked for and two drafted, of which one may count; where it falls, the other is drawn anew."""
    chances = every_outcome(5)  # of the first place: draft, decision, target; of the second: draft, target
    count = len(chances)
    drafted, draft, target = draft_two(chances[:, [0, 3]])
    one = drafted[:, 0]
    found = accept_sampled(
        drafted,
        draft,
        target,
        torch.stack([chances[:, 1], *[torch.zeros(count).double()] * 2], dim=1),  # the second stands, if it counts
        torch.stack([chances[:, 2], chances[:, 4], torch.full((count,), torch.nan).double()], dim=1),
        torch.ones(count, dtype=torch.int64),
    )
    assert set(found.counts.tolist()) == {0, 1}
    first = torch.where(found.counts == 1, one, found.following)
    second = torch.where(found.counts == 1, found.following, draw(table(NEXT_P)[first], chances[:, 4]))
    joint = torch.zeros(9).double().index_add(0, 3 * first + second, torch.ones(count).double()) / count
    expected = (torch.tensor(FIRST_P).double() / PARTS)[:, None] * table(NEXT_P)
    torch.testing.assert_close(joint.reshape(3, 3), expected, rtol=0, atol=1e-12)


def test_a_draft_that_is_the_target_always_stands():
    p = Sampling(temperature=1.0).probabilities(torch.randn(4000, 3, 9, generator=torch.Generator().manual_seed(0)))
    chances = torch.rand(4000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drafted = draw(p[:, :2], chances[:, :2])
    assert judge(drafted, p[:, :2], p, chances[:, 2:4], chances[:, 4]).counts.unique().tolist() == [2]


def test_a_token_that_the_target_excludes_never_stands():
    draft, target = torch.tensor([[[1.0, 0.0]]]).double(), torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]).double()
    found = judge(torch.tensor([[0]]), draft, target, torch.zeros(1, 1).double(), torch.zeros(1).double())
    assert (found.counts.tolist(), found.following.tolist()) == ([0], [1])


def test_the_residual_is_what_the_draft_gave_too_little_of():
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.6, 0.2]).double()
    assert residual(p, q).tolist() == [1, 0, 0]


def test_where_nothing_is_left_the_target_stands_for_the_residual():
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).double()
    found = residual(p, torch.tensor([[0.5, 0.5], [0.1, 0.9]]).double())
    assert found.tolist() == [[0.5, 0.5], [1.0, 0.0]]


def test_greedy_accepts_until_the_first_difference_and_goes_on_with_the_target_s_token():
    drafted = torch.tensor([[5, 6, 7], [5, 0, 7], [0, 6, 7]])
    best = torch.tensor([[5, 6, 7, 8]] * 3)
    found = accept_greedy(drafted, best, torch.tensor([3, 3, 3]))
    assert (found.counts.tolist(), found.following.tolist()) == ([3, 1, 0], [8, 6, 5])
    found = accept_greedy(drafted, best, torch.tensor([1, 2, 0]))
    assert (found.counts.tolist(), found.following.tolist()) == ([1, 1, 0], [6, 6, 5])


def test_greedy_is_the_sampled_rule_at_temperature_zero():
    generator = torch.Generator().manual_seed(0)
    draft = torch.randn(300, 3, 4, generator=generator)
    target = torch.cat([draft, draft[:, :1]], dim=1) + torch.randn(300, 4, 4, generator=generator)
    chances = torch.rand(300, 4, generator=generator, dtype=torch.float64)
    drafted = draft.argmax(-1)
    sampled = judge(
        drafted, Sampling().probabilities(draft), Sampling().probabilities(target), chances[:, :3], chances[:, 3]
    )
    greedy = accept_greedy(drafted, target.argmax(-1), torch.full((300,), 3))
    assert torch.equal(sampled.counts, greedy.counts)
    assert torch.equal(sampled.following, greedy.following)
    assert len(greedy.counts.unique()) == 4


def test_nothing_drafted_is_the_target_s_own_next_token():
    target = torch.tensor([[[0.25, 0.75]]]).double()
    none = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, 2, dtype=torch.float64)
    assert judge(*none, target, none[1][..., 0], torch.tensor([0.3]).double()).following.tolist() == [1]
    assert accept_greedy(none[0], torch.tensor([[1]]), torch.tensor([0])).following.tolist() == [1]
