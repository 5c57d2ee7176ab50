"""Contrastive kernels against published golden values, closed forms and a loop over pairs."""

import math
from collections.abc import Callable

import pytest
import torch

from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions
from elastic.objectives.contrastive import ImageText, caption_keys, info_nce, multi_positive_nce, nce

IMAGES = torch.tensor([[0.6, 0, 0.8, 0], [0, 0.6, 0, 0.8]], dtype=torch.float64)
TEXTS = torch.tensor([[0.6, 0.3, 0.2, 0.1], [0.1, 0.5, 0.1, 0.6]], dtype=torch.float64)
DIMS = Dimensions(embed_dim=4, width=2, num_classes=0)
CIRCLE = torch.tensor([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=torch.float64)


@pytest.mark.parametrize(("width", "expected"), [(2, 0.004373), (4, 0.007790)])
def test_info_nce_of_two_pairs_at_two_widths(width: int, expected: float):
    to_text, to_image = info_nce(IMAGES[:, :width], TEXTS[:, :width], torch.eye(2, dtype=torch.bool), 0.1)
    assert (to_text + to_image).item() / 2 == pytest.approx(expected, abs=1e-6)


def test_prefixes_are_normalised_after_slicing_not_before():
    sliced = torch.nn.functional.normalize(IMAGES, dim=1)[:, :2], torch.nn.functional.normalize(TEXTS, dim=1)[:, :2]
    logits = sliced[0] @ sliced[1].T / 0.1
    wrong = (nce(logits, torch.eye(2).bool()) + nce(logits.T, torch.eye(2).bool())) / 2
    assert wrong.item() == pytest.approx(0.097873, abs=1e-6)


def test_images_that_share_a_caption_share_its_target():
    images = torch.tensor([[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]], dtype=torch.float64)
    texts = torch.eye(2, dtype=torch.float64)
    matches = torch.tensor([[True, False], [True, False], [False, True], [False, True]])
    logits = images @ texts.T / 0.5
    rows = [float(nce(logits[i : i + 1], matches[i : i + 1])) for i in range(4)]
    columns = [float(nce(logits.T[i : i + 1], matches.T[i : i + 1])) for i in range(2)]
    assert rows == pytest.approx([0.1269, 0.5130, 0.1269, 0.0590], abs=1e-4)
    assert columns == pytest.approx([0.8132, 1.0131], abs=1e-4)
    to_text, to_image = info_nce(images, texts, matches, 0.5)
    assert to_text.item() == pytest.approx(0.2065, abs=1e-4)
    assert to_image.item() == pytest.approx(0.9132, abs=1e-4)
    assert (to_text + to_image).item() / 2 == pytest.approx(0.5598, abs=1e-4)


def test_multi_positive_rows_have_their_golden_values():
    assert float(multi_positive_nce(CIRCLE, torch.tensor([0, 0, 1, 1]), 0.5)) == pytest.approx(0.8861, abs=1e-4)


def test_multi_positive_equals_a_loop_over_pairs():
    z = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = [0, 1, 0, 2, 1, 0, -1]
    unit = z / z.norm(dim=1, keepdim=True)
    rows = []
    for i in range(7):
        others = [j for j in range(7) if j != i]
        positives = [j for j in others if labels[j] == labels[i] and labels[i] != -1]
        total = sum(math.exp(float(unit[i] @ unit[j]) / 0.1) for j in others)
        if positives:
            rows.append(-sum(float(unit[i] @ unit[j]) / 0.1 - math.log(total) for j in positives) / len(positives))
    found = multi_positive_nce(z, torch.tensor(labels), 0.1)
    assert len(rows) == 5 and found.item() == pytest.approx(sum(rows) / 5, abs=1e-10)


@pytest.mark.parametrize("views", [2, 3, 4])
def test_the_floor_is_the_log_of_the_number_of_positives(views: int):
    groups = torch.eye(3, dtype=torch.float64).repeat_interleave(views, dim=0)
    found = multi_positive_nce(groups, torch.arange(3).repeat_interleave(views), 0.01)
    assert found.item() == pytest.approx(math.log(views - 1), abs=1e-9)


def test_equal_embeddings_cost_the_log_of_the_candidates():
    found = multi_positive_nce(torch.ones(6, 3), torch.tensor([0, 0, 1, 1, 2, 2]), 0.1)
    assert found.item() == pytest.approx(math.log(5), abs=1e-5)


@pytest.mark.parametrize("labels", [[0, 1, 2], [-1, -1, -1]])
def test_a_batch_without_any_positive_costs_nothing_and_has_finite_gradient(labels: list[int]):
    z = torch.randn(3, 4, requires_grad=True)
    loss = multi_positive_nce(z, torch.tensor(labels), 0.1)
    loss.backward()
    assert loss.item() == 0 and z.grad is not None and (z.grad == 0).all()


def test_a_single_row_has_no_nan():
    z = torch.randn(1, 4, requires_grad=True)
    multi_positive_nce(z, torch.tensor([0]), 0.1).backward()
    assert z.grad is not None and z.grad.isfinite().all()


def test_caption_keys_ignore_padding_and_tell_captions_apart():
    keys = caption_keys(torch.tensor([[3, 4, 0], [4, 3, 0], [3, 4, 5], [3, 4, 0]]))
    assert keys[0] == keys[3] and len(set(keys.tolist())) == 3
    assert caption_keys(torch.tensor([[3, 4]]))[0] == keys[0]


def test_keys_of_many_captions_do_not_collide():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.unique(torch.randint(1, 4096, (20000, 8), generator=generator), dim=0)
    assert len(caption_keys(tokens).unique()) == len(tokens)


def test_the_objective_is_the_mean_of_both_directions(make_passes: Callable, make_batch: Callable):
    batch = make_batch(2, tokens=[[5], [6]], caption_index=[0, 1])
    loss = ImageText(temperature=0.1).build(DIMS)(make_passes(IMAGES, TEXTS), batch)
    assert set(loss) == {"nce"} and loss["nce"].item() == pytest.approx(0.007790, abs=1e-6)


def test_it_starts_at_the_log_of_the_batch(make_passes: Callable, make_batch: Callable):
    batch = make_batch(8, tokens=[[n] for n in range(1, 9)], caption_index=list(range(8)))
    loss = ImageText().build(DIMS)(make_passes(torch.ones(8, 4), torch.ones(8, 4)), batch)
    assert loss["nce"].item() == pytest.approx(math.log(8), abs=1e-5)


def test_equal_captions_are_each_others_positives(make_passes: Callable, make_batch: Callable):
    images, texts = torch.eye(4)[:3], torch.eye(4)[[0, 0, 2]]
    once = make_batch(3, tokens=[[5, 0], [5, 0], [6, 7]], caption_index=[0, 1, 2])
    found = ImageText(temperature=0.5).build(DIMS)(make_passes(images, texts), once)["nce"]
    matches = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    assert found.item() == pytest.approx(float(sum(info_nce(images, texts, matches, 0.5)) / 2), abs=1e-6)


def test_sharing_targets_of_equal_captions_changes_neither_loss_nor_gradient():
    """Golden value 6 of TIPS: a text that is embedded once gets the same from one-hot targets as from shared ones."""
    generator = torch.Generator().manual_seed(0)
    images, distinct = (torch.randn(n, 5, generator=generator, dtype=torch.float64) for n in (4, 3))
    texts_of = torch.tensor([0, 1, 1, 2])
    found = []
    for matches in (torch.eye(4, dtype=torch.bool), texts_of[:, None] == texts_of[None, :]):
        leaves = [images.clone().requires_grad_(), distinct.clone().requires_grad_()]
        loss = torch.stack(info_nce(leaves[0], leaves[1][texts_of], matches, 0.1)).mean()
        found.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    one_hot, shared = found
    for mine, other in zip(one_hot, shared, strict=True):
        torch.testing.assert_close(mine, other)


def test_an_image_without_caption_is_a_negative_only(make_passes: Callable, make_batch: Callable):
    images = torch.cat([IMAGES, torch.ones(1, 4, dtype=torch.float64)])
    batch = make_batch(3, tokens=[[5], [6]], caption_index=[0, 1, -1])
    found = ImageText(temperature=0.1).build(DIMS)(make_passes(images, TEXTS), batch)["nce"]
    matches = torch.tensor([[True, False], [False, True], [False, False]])
    assert found.item() == pytest.approx(float(sum(info_nce(images, TEXTS, matches, 0.1)) / 2), abs=1e-6)


def test_the_temperature_is_learned_and_cannot_pass_its_bound(make_passes: Callable, make_batch: Callable):
    objective = ImageText(temperature=0.02, min_temperature=0.01).build(DIMS)
    batch = make_batch(2, tokens=[[5], [6]], caption_index=[0, 1])
    features = make_passes(IMAGES.float(), TEXTS.float())
    objective(features, batch)["nce"].backward()
    assert objective.temperature.log_temperature.grad is not None and objective.temperature.log_temperature.grad != 0
    with torch.no_grad():
        objective.temperature.log_temperature.fill_(math.log(0.001))
    objective.after_step(0.9)
    objective.temperature.log_temperature.grad = None
    objective(features, batch)["nce"].backward()
    assert objective.temperature.log_temperature.exp().item() == pytest.approx(0.01)
    assert objective.temperature.log_temperature.grad is not None and objective.temperature.log_temperature.grad != 0


def test_parameters_have_too_few_axes_for_weight_decay():
    parameters = dict(ImageText().build(DIMS).named_parameters())
    assert set(parameters) == {"temperature.log_temperature"} and parameters["temperature.log_temperature"].ndim < 2


def test_an_encoder_without_text_tower_is_refused(make_passes: Callable, make_batch: Callable):
    batch = make_batch(2, tokens=[[5], [6]], caption_index=[0, 1])
    with pytest.raises(ConfigError, match="needs a text tower"):
        ImageText().build(DIMS)(make_passes(IMAGES), batch)


def test_temperatures_must_be_positive_and_in_order():
    with pytest.raises(ConfigError, match="must be >= min_temperature"):
        ImageText(temperature=0.005)
