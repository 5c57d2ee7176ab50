"""SynCLR's contrast: golden values, which keys an anchor sees, and where gradients stop."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elastic.batch import NO_LABEL, Batch, Features, Passes
from elastic.errors import ConfigError
from elastic.objectives.base import Dimensions
from elastic.objectives.synclr import SynClr, SynClrLoss, caption_positives, multi_positive_rows

from ..workers import TwoWorkers

DIMS = Dimensions(embed_dim=4, width=6, num_classes=0)
SMALL = SynClr(hidden=16, out=8)
CIRCLE = torch.tensor([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=torch.float64)
PAIRS = torch.tensor([0, 0, 1, 1])


def rows_of(captions: Tensor, *, self_key: bool, embeddings: Tensor = CIRCLE, temperature: float = 0.5) -> Tensor:
    own = torch.eye(len(captions), dtype=torch.bool)
    hidden = torch.zeros_like(own) if self_key else own
    positives = caption_positives(captions, captions) & ~hidden
    return multi_positive_rows(embeddings, embeddings, positives, hidden, temperature)


@pytest.mark.parametrize(
    "self_key, expected", [(False, [0.2941, 0.9488, 1.9392, 0.3622]), (True, [0.8719, 1.1703, 1.6632, 1.1777])]
)
def test_golden_values_with_and_without_the_self_key(self_key: bool, expected: list[float]):
    torch.testing.assert_close(
        rows_of(PAIRS, self_key=self_key), torch.tensor(expected, dtype=torch.float64), atol=5e-5, rtol=0
    )


@pytest.mark.parametrize("self_key, floor", [(False, math.log(3)), (True, math.log(4))])
def test_the_floor_is_the_log_of_the_number_of_positives(self_key: bool, floor: float):
    captions = torch.arange(4).repeat_interleave(4)
    perfect = torch.eye(4, dtype=torch.float64)[captions]
    found = rows_of(captions, self_key=self_key, embeddings=perfect, temperature=0.01)
    torch.testing.assert_close(found, torch.full_like(found, floor))


def test_length_of_anchors_and_keys_does_not_matter():
    scaled = CIRCLE * torch.tensor([[3], [0.1], [7], [1]], dtype=torch.float64)
    torch.testing.assert_close(
        rows_of(PAIRS, self_key=False, embeddings=scaled), rows_of(PAIRS, self_key=False, embeddings=CIRCLE)
    )


def test_two_groups_of_one_caption_are_one_group():
    captions = torch.tensor([5, 5, 9, 9, 5, 5])
    assert caption_positives(captions, captions)[0].tolist() == [True, True, False, False, True, True]


def test_rows_without_a_caption_are_nobodys_positive():
    captions = torch.tensor([NO_LABEL, 3, NO_LABEL])
    assert caption_positives(captions, captions).tolist() == [[False] * 3, [False, True, False], [False] * 3]


def features(count: int, seed: int = 0, **changes: Tensor) -> Features:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, requires_grad=True)

    drawn = {"cls_token": random(count, 6), "second_cls_token": random(count, 6)}
    return Features(embedding=random(count, 4), patch_tokens=random(count, 1, 6), **(drawn | changes))


def batch(captions: list[int], crops: int = 0) -> Batch:
    count = len(captions)
    return Batch(
        images=torch.zeros(count, 3, 2, 2),
        row_ids=torch.arange(count),
        domains=torch.zeros(count, dtype=torch.int64),
        caption_ids=torch.tensor(captions),
        local_images=torch.zeros(count * crops, 3, 1, 1) if crops else None,
    )


def build(config: SynClr = SMALL, seed: int = 0) -> SynClrLoss:
    torch.manual_seed(seed)
    loss = config.build(DIMS)
    assert isinstance(loss, SynClrLoss)
    return loss


def by_loop(anchors: Tensor, keys: Tensor, captions: list[int], own: list[int], *, self_key: bool) -> float:
    """Pairs one by one."""
    losses = []
    for anchor, place in zip(anchors, own, strict=True):
        seen = [index for index in range(len(keys)) if self_key or index != place]
        exps = {index: math.exp(torch.cosine_similarity(anchor, keys[index], dim=0).item() / 0.08) for index in seen}
        wanted = [i for i in seen if captions[i] == captions[place] != NO_LABEL]
        if wanted:
            losses.append(-sum(math.log(exps[i] / sum(exps.values())) for i in wanted) / len(wanted))
    return sum(losses) / len(losses)


CAPTIONS = [0, 0, 1, 1, 1, 2, NO_LABEL, NO_LABEL]


@pytest.mark.parametrize("local_self_key", [True, False])
def test_terms_equal_a_loop_over_pairs(local_self_key: bool):
    loss = build(replace(SMALL, locals=True, local_self_key=local_self_key))
    clean, local, teacher = features(8, 1), features(24, 2), features(8, 3)
    terms = loss(Passes(clean=clean, local=local, teacher=teacher.detach()), batch(CAPTIONS, crops=3))
    keys = loss.key_projector(teacher.cls_token)
    anchors = [loss.predictor(loss.projector(view.cls_token)) for view in (clean, local)]
    own = list(range(8))
    found = by_loop(anchors[0], keys, CAPTIONS, own, self_key=False)
    assert terms["global"].item() == pytest.approx(found, rel=1e-5)
    crops_of = [place for place in own for _ in range(3)]
    found = by_loop(anchors[1], keys, CAPTIONS, crops_of, self_key=local_self_key)
    assert terms["local"].item() == pytest.approx(found, rel=1e-5)


def test_rows_without_positives_are_no_anchors_but_negatives():
    loss = build()
    clean, teacher = features(8, 1), features(8, 3).detach()
    terms = loss(Passes(clean=clean, teacher=teacher), batch(CAPTIONS))
    terms["global"].backward()
    touched = clean.cls_token.grad.abs().sum(dim=1) > 0
    assert touched.tolist() == [True] * 5 + [False] * 3
    alone = loss(Passes(clean=first(clean, 5), teacher=first(teacher, 5)), batch(CAPTIONS[:5]))
    assert terms["global"] > alone["global"]
    assert terms["anchored@fraction"].item() == 5 / 8
    assert terms["positives@mean"].item() == pytest.approx((2 * 1 + 3 * 2) / 5)
    assert terms["floor@nats"].item() == pytest.approx(3 * math.log(2) / 5)


def first(rows: Features, count: int) -> Features:
    return Features(
        embedding=rows.embedding[:count], cls_token=rows.cls_token[:count], patch_tokens=rows.patch_tokens[:count]
    )


def test_a_batch_without_any_positive_gives_zero_and_no_nan():
    loss = build()
    terms = loss(Passes(clean=features(2), teacher=features(2, 1).detach()), batch([NO_LABEL, 4]))
    terms["global"].backward()
    assert terms["global"].item() == 0 and terms["anchored@fraction"].item() == 0
    assert all(torch.isfinite(p.grad).all() for p in loss.parameters() if p.grad is not None)
    alone = loss(Passes(clean=features(1), teacher=features(1, 1).detach()), batch([4]))
    assert alone["global"].item() == 0


def test_gradients_reach_the_student_and_its_heads_and_stop_at_the_keys():
    loss = build(replace(SMALL, locals=True))
    clean, local, teacher = features(4, 1), features(8, 2), features(4, 3)
    terms = loss(Passes(clean=clean, local=local, teacher=teacher), batch([0, 0, 1, 1], crops=2))
    (terms["global"] + terms["local"]).backward()
    for reached in (clean.cls_token, local.cls_token, *loss.projector.parameters(), *loss.predictor.parameters()):
        assert reached.grad is not None and reached.grad.abs().sum() > 0
    assert teacher.cls_token.grad is None
    assert all(not p.requires_grad and p.grad is None for p in loss.key_projector.parameters())
    for unread in (clean.embedding, clean.patch_tokens, clean.second_cls_token, local.second_cls_token):
        assert unread.grad is None


def test_the_second_token_is_read_where_it_is_asked_for():
    loss = build(replace(SMALL, token="second"))
    clean, teacher = features(4, 1), features(4, 3).detach()
    loss(Passes(clean=clean, teacher=teacher), batch([0, 0, 1, 1]))["global"].backward()
    assert clean.second_cls_token.grad.abs().sum() > 0 and clean.cls_token.grad is None
    with pytest.raises(ConfigError, match="set it to 2"):
        loss(Passes(clean=first(clean, 4), teacher=teacher), batch([0, 0, 1, 1]))


@pytest.mark.parametrize("count", [16, 64])
def test_the_loss_starts_near_the_log_of_the_keys_that_are_seen(count: int):
    alike = torch.ones(count, 6) + 0.01 * torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    views = features(count, cls_token=alike)
    loss = build(replace(SMALL, locals=True, hidden=64, out=32))
    captions = [index // 4 for index in range(count)]
    terms = loss(Passes(clean=views, local=views, teacher=views.detach()), batch(captions, crops=1))
    assert terms["global"].item() == pytest.approx(math.log(count - 1), abs=0.1)
    assert terms["local"].item() == pytest.approx(math.log(count), abs=0.1)


def test_keys_follow_the_projector_and_the_predictor_has_no_average():
    loss = build()
    names = {name.partition(".")[0] for name, _ in loss.named_parameters()}
    assert names == {"projector", "predictor", "key_projector"}
    before = [p.clone() for p in loss.key_projector.parameters()]
    with torch.no_grad():
        for p in loss.projector.parameters():
            p.add_(1)
    loss.after_step(0.75)
    for kept, new, old in zip(loss.key_projector.parameters(), loss.projector.parameters(), before, strict=True):
        torch.testing.assert_close(kept, 0.75 * old + 0.25 * new)


def test_descent_brings_images_of_a_caption_together():
    torch.manual_seed(0)
    encoder, captions = nn.Linear(24, 6), torch.arange(4).repeat_interleave(4)
    concept, noise = torch.randn(4, 12), torch.randn(16, 12)
    pixels = torch.cat([concept[captions], noise], dim=1)
    loss = build(replace(SMALL, hidden=32))
    optimizer = torch.optim.Adam([p for m in (encoder, loss) for p in m.parameters() if p.requires_grad], lr=0.01)
    for _ in range(60):
        token = encoder(pixels)
        student = features(16, cls_token=token)
        terms = loss(Passes(clean=student, teacher=student.detach()), batch(captions.tolist()))
        optimizer.zero_grad()
        terms["global"].backward()
        optimizer.step()
        loss.after_step(0.9)
    assert math.log(3) < terms["global"].item() < math.log(3) + 0.2


def test_it_declares_what_it_reads():
    assert SynClr().needs == {"caption_ids"} and SynClr().passes == {"teacher"}
    with_crops = SynClr(locals=True)
    assert with_crops.needs == {"caption_ids", "local_images"} and with_crops.passes == {"teacher", "local"}


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"hidden": 0}, {"out": 0}])
def test_impossible_values_are_refused(changes: dict):
    with pytest.raises(ConfigError):
        SynClr(**changes)


SHARED = [0, 0, 1, 1, 2, NO_LABEL, 0, 2, 2, 3]
SPLIT = 6
"""The first worker has the first 6 of 10 rows; caption 0 and 2 are on both."""
CROPS = 2


class Learner(nn.Module):
    """A linear encoder under the objective, as training wraps it in DDP; the teacher is another encoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.teacher = nn.Linear(3, 6), nn.Linear(3, 6).requires_grad_(False)
        self.loss = replace(SMALL, locals=True).build(DIMS)

    def forward(self, pixels: Tensor, crops: Tensor, rows: Batch) -> Tensor:
        clean, local, teacher = (
            features(len(seen), cls_token=tower(seen))
            for tower, seen in ((self.encoder, pixels), (self.encoder, crops), (self.teacher, pixels))
        )
        terms = self.loss(Passes(clean=clean, local=local, teacher=teacher), rows)
        return terms["global"] + terms["local"]


def shard(rank: int | None) -> tuple[Tensor, Tensor, Batch]:
    generator = torch.Generator().manual_seed(1)
    pixels, crops = torch.randn(10, 3, generator=generator), torch.randn(10, CROPS, 3, generator=generator)
    rows = slice(None) if rank is None else slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    return pixels[rows], crops[rows].flatten(0, 1), batch(SHARED[rows], CROPS)


def work(rank: int) -> dict[str, Tensor]:
    learner = Learner()
    parallel = DistributedDataParallel(learner)  # must outlive the backward pass
    loss = parallel(*shard(rank))
    loss.backward()
    grads = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | grads


def test_two_workers_learn_what_one_does(two_workers: TwoWorkers):
    alone = Learner()
    loss = alone(*shard(None))
    loss.backward()
    one, two = two_workers.run(work)
    torch.testing.assert_close((one["loss"] + two["loss"]) / 2, loss.detach(), rtol=0, atol=1e-6)
    trained = {name: p for name, p in alone.named_parameters() if p.requires_grad}
    assert one.keys() == {"loss", *trained}
    for name, parameter in trained.items():
        torch.testing.assert_close(one[name], parameter.grad, rtol=1e-5, atol=1e-6)
        assert torch.equal(one[name], two[name]), name
