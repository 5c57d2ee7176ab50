"""UDON: golden values of its losses, where its gradients stop, and what it does not depend on."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from elastic.batch import Batch, Features, Passes
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions
from elastic.objectives.joint import JointObjective
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.udon import RELATIONS_SCALE, Udon, UdonLoss, classify, disagreement, divergence

from ..workers import TwoWorkers

DIMS = Dimensions(embed_dim=4, width=6, num_classes=7, class_domains=(0, 0, 1, 1, 1, 2, 2))
TEACHER = torch.tensor([[0.9, 0.1], [0.2, 0.6]], dtype=torch.float64)
STUDENT = torch.tensor([[0.5, 0.3], [0.4, 0.4]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])
HEADS = ("teacher_weight", "teacher_bias", "teacher_prototypes")


def make_batch(labels: list[int], domains: list[int] | int = 1, **changes: object) -> Batch:
    rows = len(labels)
    fields = {
        "images": torch.zeros(rows, 3, 1, 1),
        "row_ids": torch.arange(rows),
        "domains": torch.full((rows,), domains) if isinstance(domains, int) else torch.tensor(domains),
        "labels": torch.tensor(labels),
    }
    return Batch(**fields | changes)


def make_passes(embedding: Tensor, cls_token: Tensor) -> Passes:
    return Passes(clean=Features(embedding=embedding, cls_token=cls_token, patch_tokens=cls_token[:, None]))


def random_rows(rows: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Embeddings and class tokens that collect gradients."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(rows, DIMS.embed_dim, generator=generator, requires_grad=True)
    return embedding, torch.randn(rows, DIMS.width, generator=generator, requires_grad=True)


def build(seed: int = 0, dims: Dimensions = DIMS, **knobs: float) -> UdonLoss:
    torch.manual_seed(seed)
    return Udon(**{"teacher_dim": 5} | knobs).build(dims)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack([value for name, value in terms.items() if "@" not in name]).sum()


def rows_with(gram: Tensor) -> Tensor:
    """Rows whose products are those of a positive definite matrix."""
    return torch.linalg.cholesky(gram)


@pytest.mark.parametrize(("label", "expected"), [(0, 0.0181500), (1, 4.0181500)])
def test_scaled_cross_entropy_has_its_golden_value(label: int, expected: float):
    found = classify(torch.tensor([[0.5, 0.25, -0.5]], dtype=torch.float64), torch.tensor([label]), 16)
    assert found.tolist() == pytest.approx([expected], abs=1e-7)


def test_classification_of_teacher_and_student_have_their_golden_values():
    assert classify(TEACHER, LABELS, 16).mean().item() == pytest.approx(0.00083147, abs=1e-8)
    assert classify(STUDENT, LABELS, 16).mean().item() == pytest.approx(0.36655026, abs=1e-8)


def test_the_divergence_is_forward_on_raw_cosines_and_without_the_squared_temperature():
    rows = divergence(TEACHER, STUDENT, 0.1)
    assert rows.tolist() == pytest.approx([0.124581, 0.603052], abs=1e-6)
    assert rows.mean().item() == pytest.approx(0.36381646, abs=1e-8)
    assert divergence(STUDENT, TEACHER, 0.1).mean().item() == pytest.approx(0.95681384, abs=1e-8)


def test_relations_are_the_mean_over_pairs_times_the_batch_of_128_divided_by_4():
    teacher, student = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.eye(2)
    assert disagreement(student, teacher, 2).item() == pytest.approx(0.18)
    assert RELATIONS_SCALE * disagreement(student, teacher, 32).item() == pytest.approx(5.76)


def test_the_loss_of_a_batch_has_its_golden_value():
    # Two images and two classes, with the cosines of the tests above; those between classes do not count.
    teacher = rows_with(
        torch.tensor([[1, 0.6, 0.9, 0.1], [0.6, 1, 0.2, 0.6], [0.9, 0.2, 1, -0.2], [0.1, 0.6, -0.2, 1]])
    )
    student = rows_with(torch.tensor([[1, 0, 0.5, 0.3], [0, 1, 0.4, 0.4], [0.5, 0.4, 1, 0], [0.3, 0.4, 0, 1]]))
    dims = Dimensions(embed_dim=4, width=4, num_classes=2, class_domains=(0, 0))
    loss = build(dims=dims, teacher_dim=4)
    loss.teacher_weight.data = torch.eye(4)[None]
    loss.teacher_prototypes.data, loss.student_prototypes.data = 3 * teacher[2:], 2 * student[2:]
    terms = loss(make_passes(5 * student[:2], 7 * teacher[:2]), make_batch([0, 1], 0))
    # The golden total has 0.36 for the relations, which is what four devices of two images give.
    assert total(terms).item() == pytest.approx(0.27279955 + (5.76 - 0.36) / 4, abs=1e-5)
    assert terms["relations"].item() == pytest.approx(5.76 / 4, abs=1e-5)
    assert terms["logits"].item() == pytest.approx(0.36381646 / 4, abs=1e-5)
    assert terms["student_ce"].item() == pytest.approx(0.36655026 / 4, abs=1e-5)
    assert terms["teacher_ce"].item() == pytest.approx(0.00083147 / 4, abs=1e-6)
    assert terms["teacher_ce@raw"].item() == pytest.approx(0.00083147, abs=1e-6)
    assert not terms["teacher_ce@raw"].requires_grad


def test_it_starts_at_the_log_of_the_classes_plus_half_the_squared_scale_by_the_width():
    dims = Dimensions(embed_dim=64, width=300, num_classes=1000, class_domains=(0,) * 1000)
    loss, generator = build(dims=dims, teacher_dim=256), torch.Generator().manual_seed(0)
    passes = make_passes(torch.randn(1000, 64, generator=generator), torch.randn(1000, 300, generator=generator))
    terms = loss(passes, make_batch(list(range(1000)), 0))
    assert terms["teacher_ce@raw"].item() == pytest.approx(math.log(1000) + 0.5, abs=0.15)
    assert 4 * terms["student_ce"].item() == pytest.approx(8.72, abs=0.15)


@pytest.mark.parametrize(("classes", "expected"), [(78, 8.7e-6), (1074, 1.2e-4), (224_408, 2.49e-2)])
def test_the_floor_of_a_classification_is_that_of_orthogonal_classes(classes: int, expected: float):
    cosines = torch.zeros(1, classes, dtype=torch.float64)
    cosines[0, 3] = 1
    found = classify(cosines, torch.tensor([3]), 16).item()
    assert found == pytest.approx(math.log(1 + (classes - 1) * math.exp(-16)), abs=1e-12)
    assert found == pytest.approx(expected, rel=0.02)


def test_the_loss_equals_a_loop_over_rows_classes_and_pairs():
    loss, (embedding, cls_token) = build(block=3), random_rows(7)
    labels = [2, 4, 3, 3, 2, 4, 4]
    found = total(loss(make_passes(embedding, cls_token), make_batch(labels)))
    unit = [F.normalize(embedding[i], dim=0) for i in range(7)]
    head = loss.teacher_weight[1], loss.teacher_bias[1]
    taught = [F.normalize(head[0] @ F.normalize(cls_token[i], dim=0) + head[1], dim=0) for i in range(7)]
    classes = range(2, 5)  # of domain 1
    expected = torch.zeros(())
    for i in range(7):
        z_t = torch.stack([taught[i] @ F.normalize(loss.teacher_prototypes[c], dim=0) for c in classes])
        z_u = torch.stack([unit[i] @ F.normalize(loss.student_prototypes[c], dim=0) for c in classes])
        for z in (z_t, z_u):
            expected = expected - (16 * z).log_softmax(0)[labels[i] - 2] / 7
        p, q = (10 * z_t).softmax(0), (10 * z_u).softmax(0)
        expected = expected + (p * (p / q).log()).sum() / 7
    pairs = [(i, j) for rows in (range(3), range(3, 6), range(6, 7)) for i in rows for j in rows]
    squares = [(unit[i] @ unit[j] - taught[i] @ taught[j]) ** 2 for i, j in pairs]
    expected = expected + 32 * torch.stack(squares).mean()
    torch.testing.assert_close(found, expected / 4)


def test_weights_are_relative_to_their_sum():
    rows, batch = make_passes(*random_rows(4)), make_batch([2, 3, 4, 2])
    plain = build()(rows, batch)
    doubled = build(teacher_weight=2, student_weight=2, logits_weight=2, relations_weight=2)(rows, batch)
    torch.testing.assert_close(plain, doubled)
    alone = build(teacher_weight=0, logits_weight=0, relations_weight=0)(rows, batch)
    torch.testing.assert_close(total(alone), 4 * plain["student_ce"])
    torch.testing.assert_close(alone["teacher_ce@raw"], plain["teacher_ce@raw"])


def test_distillation_trains_the_student_and_never_the_teacher():
    loss, (embedding, cls_token) = build(teacher_weight=0, student_weight=0), random_rows(4)
    terms = loss(make_passes(embedding, cls_token), make_batch([2, 3, 4, 2]))
    total(terms).backward()
    parameters = dict(loss.named_parameters())
    assert all(parameters[name].grad is None or (parameters[name].grad == 0).all() for name in HEADS)
    assert cls_token.grad is None or (cls_token.grad == 0).all()
    assert loss.student_prototypes.grad is not None and (loss.student_prototypes.grad[2:5] != 0).any(dim=1).all()
    assert embedding.grad is not None and (embedding.grad != 0).any(dim=1).all()


@pytest.mark.parametrize("term", ["logits", "relations"])
def test_each_distillation_reaches_the_student_embedding(term: str):
    loss, (embedding, cls_token) = build(), random_rows(4)
    loss(make_passes(embedding, cls_token), make_batch([2, 3, 4, 2]))[term].backward()
    assert embedding.grad is not None and (embedding.grad != 0).any(dim=1).all()
    reached = loss.student_prototypes.grad is not None and bool((loss.student_prototypes.grad != 0).any())
    assert reached == (term == "logits")
    assert cls_token.grad is None and all(getattr(loss, name).grad is None for name in HEADS)


def test_teacher_classification_trains_its_head_and_the_encoder_and_not_the_student():
    loss, (embedding, cls_token) = build(), random_rows(4)
    loss(make_passes(embedding, cls_token), make_batch([2, 3, 4, 2]))["teacher_ce"].backward()
    for name in HEADS:
        gradient = getattr(loss, name).grad
        assert gradient is not None and (gradient != 0).any(), name
    assert cls_token.grad is not None and (cls_token.grad != 0).any(dim=1).all()
    assert embedding.grad is None and loss.student_prototypes.grad is None


def test_idle_heads_have_a_gradient_of_exactly_zero():
    loss = build()
    total(loss(make_passes(*random_rows(4)), make_batch([2, 3, 4, 2]))).backward()
    for parameter, busy in (
        (loss.teacher_weight, slice(1, 2)),
        (loss.teacher_bias, slice(1, 2)),
        (loss.teacher_prototypes, slice(2, 5)),
        (loss.student_prototypes, slice(2, 5)),
    ):
        assert parameter.grad is not None and (parameter.grad[busy] != 0).flatten(1).any(dim=1).all()
        idle = torch.ones(len(parameter), dtype=torch.bool)
        idle[busy] = False
        assert (parameter.grad[idle] == 0).all()


def test_adam_goes_on_moving_a_head_that_is_idle():
    loss = build()
    optimizer = torch.optim.AdamW(loss.parameters(), lr=0.1, weight_decay=0.0)
    seen = []
    for domain, labels in ((1, [2, 3, 4, 2]), (0, [0, 1, 1, 0])):
        optimizer.zero_grad()
        total(loss(make_passes(*random_rows(4)), make_batch(labels, domain))).backward()
        optimizer.step()
        seen.append(loss.teacher_weight[1].detach().clone())
    assert not torch.equal(seen[0], seen[1])


def test_only_classes_of_the_batchs_domain_compete():
    rows, batch = make_passes(*random_rows(4)), make_batch([2, 3, 4, 2])
    loss = build()
    before = loss(rows, batch)
    others = [0, 1, 5, 6]
    loss.teacher_prototypes.data[others] = loss.teacher_prototypes.data[others].roll(1, dims=1)
    loss.student_prototypes.data[others] = -loss.student_prototypes.data[others]
    torch.testing.assert_close(loss(rows, batch), before, rtol=0, atol=0)


def test_rows_without_a_label_are_imitated_and_not_classified():
    embedding, cls_token = random_rows(4)
    loss = build()
    some = loss(make_passes(embedding, cls_token), make_batch([2, -1, 4, -1]))
    labelled = loss(make_passes(embedding[[0, 2]], cls_token[[0, 2]]), make_batch([2, 4]))
    torch.testing.assert_close(some["teacher_ce"], labelled["teacher_ce"])
    torch.testing.assert_close(some["student_ce"], labelled["student_ce"])
    everything = loss(make_passes(embedding, cls_token), make_batch([2, 2, 4, 2]))
    torch.testing.assert_close(some["logits"], everything["logits"])
    torch.testing.assert_close(some["relations"], everything["relations"])


@pytest.mark.parametrize("domains", [[1, 1, 0, 1], 3])
def test_a_batch_that_is_not_of_one_known_domain_is_refused(domains: list[int] | int):
    batch = make_batch([2, 3, 4, 2], domains, stream=5)
    with pytest.raises(ConfigError, match=r"data.streams.5.domains=.*give every domain a stream of its own"):
        build()(make_passes(*random_rows(4)), batch)


def test_a_domain_without_classes_is_refused():
    gap = Dimensions(embed_dim=4, width=6, num_classes=3, class_domains=(0, 0, 2))
    with pytest.raises(ConfigError, match="one domain that has classes"):
        build(dims=gap)(make_passes(*random_rows(2)), make_batch([-1, -1], 1))


def test_data_without_classes_is_refused():
    with pytest.raises(ConfigError, match="needs labelled training data"):
        Udon().build(Dimensions(embed_dim=4, width=6, num_classes=0))


@pytest.mark.parametrize(
    "wrong", [{"scale": 0}, {"temperature": 0}, {"block": 0}, {"teacher_dim": 0}, {"logits_weight": -1}]
)
def test_knobs_outside_their_range_are_refused(wrong: dict[str, float]):
    with pytest.raises(ConfigError, match="udon"):
        Udon(**wrong)


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(ConfigError, match="not all zero"):
        Udon(teacher_weight=0, student_weight=0, logits_weight=0, relations_weight=0)


def test_every_width_is_a_student_of_the_same_teacher():
    rows, batch = make_passes(*random_rows(4)), make_batch([2, 3, 4, 2])
    torch.manual_seed(0)
    wrapped = Matryoshka(inner=Udon(teacher_dim=5), embed_dims=(2, 4)).build(DIMS)(rows, batch)
    plain = build()(rows, batch)
    for name in ("teacher_ce", "teacher_ce@raw"):
        torch.testing.assert_close(wrapped[name], plain[name])
        torch.testing.assert_close(wrapped[f"{name}@2"], plain[name].detach())
    for name in ("student_ce", "logits", "relations"):
        torch.testing.assert_close(wrapped[f"{name}@4"], plain[name].detach())
        torch.testing.assert_close(wrapped[name], (wrapped[f"{name}@2"] + wrapped[f"{name}@4"]) / 2)
        assert not torch.isclose(wrapped[f"{name}@2"], wrapped[f"{name}@4"])


def test_the_first_coordinates_are_a_student_with_prototypes_of_their_own_length():
    embedding, cls_token = random_rows(4)
    batch, loss = make_batch([2, 3, 4, 2]), build()
    cut = loss(make_passes(embedding, cls_token).truncate(2), batch)
    zeroed = embedding.detach().clone()
    zeroed[:, 2:] = 0
    loss.student_prototypes.data[:, 2:] = 0
    torch.testing.assert_close(cut, loss(make_passes(zeroed, cls_token), batch))


def test_descent_teaches_and_aligns():
    loss, (embedding, cls_token) = build(), random_rows(6)
    batch = make_batch([2, 3, 4, 2, 3, 4])
    optimizer = torch.optim.Adam([*loss.parameters(), embedding, cls_token], lr=0.05)
    values = []
    for _ in range(100):
        optimizer.zero_grad()
        terms = loss(make_passes(embedding, cls_token), batch)
        total(terms).backward()
        optimizer.step()
        values.append({name: value.item() for name, value in terms.items()})
    assert all(values[-1][name] < values[0][name] / 4 for name in ("teacher_ce", "student_ce", "logits", "relations"))


SPLIT = 6
"""The first worker has the first 6 of 10 rows, so that blocks of 4 reach over the border and the last has 2."""


class Learner(torch.nn.Module):
    """A linear image tower with the objective, as training wraps it in data parallelism."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone, self.head = torch.nn.Linear(3, DIMS.width), torch.nn.Linear(DIMS.width, DIMS.embed_dim)
        udon = Matryoshka(inner=Udon(teacher_dim=5, block=4), embed_dims=(2, 4))
        self.objective = JointObjective({"udon": udon}, DIMS)

    def forward(self, pixels: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = self.backbone(pixels)
        return self.objective(make_passes(self.head(tokens), tokens), batch)


def shard(rows: slice) -> tuple[Tensor, Batch]:
    pixels = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    return pixels[rows], make_batch([2, 2, 3, -1, 4, 4, 2, 3, 3, -1][rows])


def work(rank: int) -> dict[str, Tensor]:
    """A worker's terms and gradients."""
    learner = Learner()
    parallel = DistributedDataParallel(learner)
    loss, terms = parallel(*shard(slice(SPLIT) if rank == 0 else slice(SPLIT, None)))
    loss.backward()
    found = {f"grad/{name}": parameter.grad for name, parameter in learner.named_parameters()}
    return found | {name: value.detach() for name, value in terms.items()}


def test_two_workers_learn_what_one_does(two_workers: TwoWorkers):
    alone = Learner()
    loss, terms = alone(*shard(slice(None)))
    loss.backward()
    first, second = two_workers.run(work)
    for name, value in terms.items():
        torch.testing.assert_close((first[name] + second[name]) / 2, value.detach(), msg=name)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(first[f"grad/{name}"], parameter.grad, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(first[f"grad/{name}"], second[f"grad/{name}"]), name
