"""The three objectives of TIPS on features given by hand."""

import math
from dataclasses import replace

import pytest
import torch

from elastic.batch import Batch, Captions, Features, Passes
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions
from elastic.objectives.prototypes import Prototypes
from elastic.objectives.tips import DualImageText, MaskedPatches, SelfDistillation, mean_in_images

DIMS = Dimensions(embed_dim=4, width=6, num_classes=0, num_patches=4)
SMALL = Prototypes(count=16, hidden=12, bottleneck=8)


def features(count: int, seed: int = 0, patches: int = 4, **changes) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, requires_grad=True)

    return Features(
        **(
            {
                "embedding": random(count, 4),
                "cls_token": random(count, 6),
                "patch_tokens": random(count, patches, 6),
                "second_embedding": random(count, 4),
                "second_cls_token": random(count, 6),
            }
            | changes
        )
    )


def captions(count: int) -> Captions:
    tokens = torch.arange(1, count + 1)[:, None]
    return Captions(tokens=tokens, mask=tokens > 0, index=torch.arange(count))


def batch(count: int, **changes) -> Batch:
    return Batch(
        images=torch.zeros(count, 3, 4, 4),
        row_ids=torch.arange(count),
        domains=torch.zeros(count, dtype=torch.int64),
        **changes,
    )


IMAGES = torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])
TEXTS = torch.tensor([[0.8, 0.6, 0, 0], [0.6, 0.8, 0, 0]])


def dual_passes() -> Passes:
    return Passes(
        clean=features(
            2,
            embedding=IMAGES,
            text_embedding=TEXTS,
            second_embedding=IMAGES,
            second_text_embedding=TEXTS.flip(0),
        )
    )


def test_each_class_token_meets_its_own_captions():
    loss = DualImageText(temperature=0.1).build(DIMS)
    terms = loss(dual_passes(), batch(2, captions=captions(2), synthetic_captions=captions(2)))
    assert terms["web"].item() == pytest.approx(0.1269 / 2, abs=5e-5)
    assert terms["synthetic"].item() == pytest.approx((0.1269 + 2) / 2, abs=5e-5)  # the wrong captions: 2 nats more


def test_generated_images_without_written_captions_train_the_second_token_only():
    terms = DualImageText(temperature=0.1).build(DIMS)(dual_passes(), batch(2, synthetic_captions=captions(2)))
    assert set(terms) == {"synthetic", "temperature@value"}


def test_both_captions_share_one_temperature_that_may_fall_below_clips():
    loss = DualImageText(temperature=0.005).build(DIMS)
    assert [name for name, _ in loss.named_parameters()] == ["temperature.log_temperature"]
    assert loss.temperature().item() == pytest.approx(0.005)


def test_one_class_token_is_refused():
    one = replace(dual_passes().clean, second_embedding=None)
    with pytest.raises(ConfigError, match="two class tokens"):
        DualImageText().build(DIMS)(Passes(clean=one), batch(2, synthetic_captions=captions(2)))


def test_the_dual_loss_starts_at_the_log_of_the_batch():
    torch.manual_seed(0)
    same = torch.ones(32, 4)
    passes = Passes(
        clean=features(32, embedding=same, text_embedding=same, second_embedding=same, second_text_embedding=same)
    )
    terms = DualImageText().build(DIMS)(passes, batch(32, captions=captions(32), synthetic_captions=captions(32)))
    assert (terms["web"] + terms["synthetic"]).item() == pytest.approx(math.log(32), abs=1e-5)


def test_losses_are_averaged_in_images_and_then_over_images():
    losses = torch.tensor([[2.0, 9, 9], [1, 3, 5]])
    rows, valid = mean_in_images(losses, torch.tensor([[True, False, False], [True, True, True]]))
    assert rows.tolist() == [2, 3] and rows[valid].mean() == 2.5  # not 2.75, the mean over patches


def test_an_image_without_counted_patches_does_not_count():
    rows, valid = mean_in_images(torch.ones(2, 3), torch.tensor([[False] * 3, [True] * 3]))
    assert rows.tolist() == [0, 1] and valid.tolist() == [False, True]


def distil(local: Features, teacher: Features) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    passes = Passes(clean=features(3), local=local, teacher=teacher.detach())
    return SelfDistillation(prototypes=SMALL).build(DIMS)(passes, batch(3, local_images=torch.zeros(6, 3, 2, 2)))


def test_crops_are_compared_with_their_own_image():
    teacher = features(3, seed=1)
    local = features(6, seed=2)
    torch.manual_seed(0)
    loss = SelfDistillation(prototypes=SMALL).build(DIMS)
    matching = loss.matching
    targets = (matching.teacher(teacher.cls_token) / 0.04).softmax(dim=-1)
    expected = sum(
        -(targets[image] * (matching.student(local.cls_token[2 * image + crop]) / 0.1).log_softmax(dim=-1)).sum()
        for image in range(3)
        for crop in range(2)
    )
    torch.testing.assert_close(distil(local, teacher)["crops"], expected / 6)


def test_distillation_teaches_crops_and_nothing_else():
    teacher, local = features(3, seed=1), features(6, seed=2)
    distil(local, teacher)["crops"].backward()
    assert local.cls_token.grad.abs().sum() > 0
    assert teacher.cls_token.grad is local.patch_tokens.grad is None


@pytest.mark.parametrize("every_patch", [False, True])
def test_hidden_patches_or_all_are_compared_at_their_place(every_patch: bool):
    torch.manual_seed(0)
    loss = MaskedPatches(prototypes=SMALL, every_patch=every_patch).build(DIMS)
    masked, teacher = features(2, seed=1), features(2, seed=2).detach()
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    terms = loss(Passes(clean=features(2), masked=masked, teacher=teacher), batch(2, mask=mask))
    targets = (loss.matching.teacher(teacher.patch_tokens) / 0.04).softmax(dim=-1)
    rows = -(targets * (loss.matching.student(masked.patch_tokens) / 0.1).log_softmax(dim=-1)).sum(dim=-1)
    counted = torch.ones_like(mask) if every_patch else mask
    expected = sum(rows[i][counted[i]].mean() for i in range(2)) / 2
    torch.testing.assert_close(terms["patches"], expected)
    terms["patches"].backward()
    untouched = masked.patch_tokens.grad.abs().sum(dim=-1) == 0
    assert torch.equal(untouched, ~counted)
    assert masked.cls_token.grad is None


def test_sinkhorn_targets_use_all_prototypes():
    torch.manual_seed(0)
    sharp = replace(SMALL, balance="sinkhorn", count=4)
    loss = MaskedPatches(prototypes=sharp).build(DIMS)
    same = features(8, patch_tokens=torch.ones(8, 4, 6) + 0.01 * torch.randn(8, 4, 6)).detach()
    terms = loss(Passes(clean=features(8), masked=features(8), teacher=same), batch(8, mask=torch.ones(8, 4).bool()))
    assert terms["collapse@use"] > 0.99
