"""Mixed batches compute what each submodel computes alone, and the benchmark's numbers follow from its samples."""

import pytest
import torch

from benchmarks.mixed_batches import Part, forward_mixed, parts_of, summarise, wanted
from elastic.model.config import EncoderConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.vit import forward_vit
from elastic.submodel import Submodel


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    vision = VisionConfig(image_size=16, patch_size=8, width=24, depth=2, num_heads=3)
    return Encoder(EncoderConfig(vision=vision, embed_dims=(4, 8))).eval()


@pytest.mark.parametrize("in_blocks", [True, False])
def test_every_row_of_a_mixed_batch_is_that_of_its_submodel(encoder: Encoder, in_blocks: bool):
    parts = [Part(Submodel((96, 96)), 1), Part(Submodel((24, 96)), 2), Part(Submodel((24, 24)), 1)]
    images = torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        mixed = forward_mixed(encoder.image, images, parts, in_blocks=in_blocks)
        for row, submodel in enumerate(part.submodel for part in parts for _ in range(part.count)):
            alone = forward_vit(encoder.image, images[row : row + 1], submodel).embedding[0]
            torch.testing.assert_close(mixed[row], alone, rtol=1e-5, atol=1e-5)


def test_rows_that_want_at_least_a_size_include_those_that_want_more():
    assert wanted([(96, 1), (48, 2), (12, 5)]) == [(12, 8), (48, 3), (96, 1)]


def test_a_mix_holds_its_shares_of_the_batch_largest_first(encoder: Encoder):
    small, *_, full = encoder.space.granularities.values()
    assert parts_of(encoder.space, "mostly S", 16) == [Part(full, 4), Part(small, 12)]


def test_separate_batches_answer_the_small_submodel_first():
    large, small = Submodel((96,)), Submodel((12,))
    samples = {"blocks": [8.0], "groups": [9.0], "largest": [16.0], "smallest": [4.0]}
    samples |= {f"alone {large}": [6.0], f"alone {small}": [2.0]}
    cell = summarise("model", "mix", [Part(large, 1), Part(small, 3)], samples, 0.0)
    assert cell.blocks_over_separate == pytest.approx(8 / (6 + 2))
    assert cell.mixed_over_largest == pytest.approx(8 / 16)
    # Three inputs are done after 2 ms and one after 8 ms; in the mixed batch all after 8 ms.
    assert cell.mean_wait_over_separate == pytest.approx(8 / ((3 * 2 + 8) / 4))
