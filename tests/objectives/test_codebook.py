"""The codebook finds clusters, stays put once it is fitted, and forgets nothing when a run is interrupted."""

import pytest
import torch
from torch import Tensor

from elastic.errors import ConfigError
from elastic.objectives.codebook import Codebook, first_codes


def clusters(num_codes: int, per_cluster: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tight clusters around distant centres, and which of them each point belongs to."""
    generator = torch.Generator().manual_seed(seed)
    centres = 100 * torch.eye(num_codes, 12)
    owners = torch.arange(num_codes).repeat(per_cluster)
    return centres[owners] + torch.randn(len(owners), 12, generator=generator), owners


def test_every_well_separated_cluster_gets_a_code():
    codebook = Codebook(10, 12, fit_steps=5)
    for seed in range(5):
        codebook.fit(clusters(10, 30, seed)[0])
    points, owners = clusters(10, 50, seed=9)
    found = codebook.nearest(points)
    pairs = set(zip(owners.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 10 and len({code for _, code in pairs}) == 10
    torch.testing.assert_close(codebook.codes[found], 100 * torch.eye(10, 12)[owners], atol=0.5, rtol=0)


def test_a_code_is_the_mean_of_all_patches_that_were_ever_assigned_to_it():
    codebook = Codebook(3, 12, fit_steps=9)
    batches = [clusters(3, count, seed=count)[0] for count in (4, 7, 1)]
    for batch in batches:
        codebook.fit(batch)
    points, owners = torch.cat(batches), torch.arange(3).repeat(12)
    found = codebook.nearest(points)
    for cluster in range(3):
        mine = points[owners == cluster]
        torch.testing.assert_close(codebook.codes[found[owners == cluster][0]], mine.mean(dim=0))
    assert codebook.weights.tolist() == [12, 12, 12]


def test_an_empty_code_takes_the_place_of_the_worst_described_patch():
    codebook = Codebook(2, 2, fit_steps=9)
    codebook.fit(torch.tensor([[0.0, 0], [10, 0]]))
    codebook.codes.copy_(torch.tensor([[0.0, 0], [1000, 0]]))
    codebook.weights.copy_(torch.tensor([4.0, 4]))
    codebook.fit(torch.tensor([[1.0, 0], [0, 2], [-1, 0], [0, -6]]))
    assert codebook.codes.tolist() == [[0, -0.5], [0, -6]]
    assert codebook.weights.tolist() == [8, 1]


def test_a_patch_that_equals_its_code_seeds_no_other():
    codebook = Codebook(2, 2, fit_steps=9)
    codebook.fit(torch.tensor([[0.0, 0], [10, 0]]))
    before = codebook.codes.clone()
    codebook.fit(torch.zeros(3, 2))
    assert torch.equal(codebook.codes, before)


def test_first_codes_are_distinct_patches_and_one_of_each_cluster():
    points, _ = clusters(6, 5)
    doubled = torch.cat([points, points])
    codes = first_codes(doubled, 6)
    assert all((points == code).all(dim=1).any() for code in codes)
    assert len({int(code.argmax()) for code in codes}) == 6
    assert len(first_codes(doubled, 30).unique(dim=0)) == 30


def test_more_codes_than_distinct_patches_are_refused():
    few = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert len(first_codes(few, 2)) == 2
    with pytest.raises(ConfigError, match="more than the 2 distinct patches"):
        Codebook(3, 2, fit_steps=1).fit(few)


def test_it_is_fitted_after_so_many_batches():
    codebook = Codebook(2, 12, fit_steps=2)
    seen = []
    for seed in range(3):
        seen.append(codebook.is_fitted)
        codebook.fit(clusters(2, 3, seed)[0])
    assert seen == [False, False, True]


def test_a_fit_resumes_from_its_state_alone():
    straight, interrupted, resumed = (Codebook(5, 12, fit_steps=4) for _ in range(3))
    batches = [clusters(7, 4, seed)[0] for seed in range(4)]
    for batch in batches:
        straight.fit(batch)
    for batch in batches[:2]:
        interrupted.fit(batch)
    resumed.load_state_dict(interrupted.state_dict())
    torch.rand(3)
    for batch in batches[2:]:
        resumed.fit(batch)
    assert resumed.is_fitted and not interrupted.is_fitted
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in straight.state_dict().items())
