"""MatLM recipes fit together, and nest as MatFormer's public code does."""

import pytest

from elastic.lm.training.dry_run import num_parameters
from elastic.profile.flops import count_token
from elastic.recipes.matlm import matlm, matlm_debug, matlm_gpu


@pytest.mark.parametrize("recipe", [matlm, matlm_gpu])
def test_feed_forward_blocks_halve_three_times_and_are_most_of_a_block(recipe):
    decoder = recipe().decoder
    full = decoder.ffn_dims[-1]
    assert decoder.ffn_dims == tuple(full // factor for factor in (8, 4, 2, 1))
    assert full > 6 * decoder.width


def test_a_draft_by_the_smallest_is_cheap():
    config = matlm()
    costs = [count_token(config.decoder, s, 1).flops for s in config.decoder.space.granularities.values()]
    assert costs[0] < 0.4 * costs[-1]


def test_the_largest_learns_at_every_step_and_the_others_from_it():
    for config in (matlm(), matlm_debug(), matlm_gpu()):
        assert config.submodels.policy in ("anchored", "sandwich") and config.distillation == 0.5


def test_the_debug_run_is_tiny_and_the_gpu_run_is_not():
    assert num_parameters(matlm_debug()) < 100_000 < num_parameters(matlm()) < 10_000_000 < num_parameters(matlm_gpu())
    assert matlm_gpu().device == "gpu" and matlm_gpu().precision == "bf16"
