"""Two workers with half of a batch each learn exactly what one process learns from all of it."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elastic.batch import Batch, Captions, Features, Passes
from elastic.objectives.base import Dimensions, ObjectiveConfig
from elastic.objectives.classification import Classification
from elastic.objectives.contrastive import ImageText
from elastic.objectives.distributed import first_row, gather, gather_with_grad, global_mean
from elastic.objectives.joint import JointObjective
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.supcon import MultiPositive

from ..workers import TwoWorkers

DIMS = Dimensions(embed_dim=4, width=3, num_classes=5)
OBJECTIVES: Mapping[str, ObjectiveConfig] = {
    "supcon": Matryoshka(inner=MultiPositive(), embed_dims=(2, 4)),
    "text": Matryoshka(inner=ImageText(), embed_dims=(2, 4), weight=0.5),
    "classes": Matryoshka(inner=Classification(margin=0.2), embed_dims=(2, 4)),
}
LABELS = torch.tensor([0, 0, 1, 1, -1, 2, 2, 3, 3, 3])
CAPTION_INDEX = torch.tensor([0, 0, 1, 1, -1, 2, 2, 3, 3, 3])
TOKENS = torch.tensor([[5, 6, 7], [8, 0, 0], [9, 9, 0], [5, 6, 0]])
SPLIT = (5, 2)
"""The first worker has the first 5 rows and 2 captions; the other, as many rows and 2 captions of fewer tokens."""


class Learner(nn.Module):
    """A linear image and text tower with the joint objective, as training wraps it in DDP."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(3, 4), nn.Linear(3, 4)
        self.objective = JointObjective(OBJECTIVES, DIMS)

    def forward(self, pixels: Tensor, captions: Tensor, batch: Batch) -> Tensor:
        features = Features(
            embedding=self.image(pixels),
            cls_token=pixels,
            patch_tokens=pixels[:, None],
            text_embedding=self.text(captions),
        )
        return self.objective(Passes(clean=features), batch)[0]


def shard(rank: int | None) -> tuple[Tensor, Tensor, Batch]:
    """One worker's rows, or with `None` everybody's."""
    generator = torch.Generator().manual_seed(1)
    pixels, captions = torch.randn(10, 3, generator=generator), torch.randn(4, 3, generator=generator)
    rows = slice(None) if rank is None else slice(0, SPLIT[0]) if rank == 0 else slice(SPLIT[0], None)
    texts = slice(None) if rank is None else slice(0, SPLIT[1]) if rank == 0 else slice(SPLIT[1], None)
    index = CAPTION_INDEX[rows]
    tokens = TOKENS[texts] if rank != 1 else TOKENS[texts, :2]
    batch = Batch(
        images=torch.zeros(len(index), 3, 1, 1),
        row_ids=torch.arange(len(index)),
        domains=torch.zeros(len(index), dtype=torch.int64),
        labels=LABELS[rows],
        captions=Captions(tokens=tokens, mask=tokens != 0, index=index - (SPLIT[1] if rank == 1 else 0)),
    )
    return pixels[rows], captions[texts], batch


def gradients(rank: int) -> dict[str, Tensor]:
    learner = Learner()
    parallel = DistributedDataParallel(learner)  # must outlive the backward pass
    loss = parallel(*shard(rank))
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def primitives(rank: int) -> dict[str, Tensor]:
    rows = torch.full((2 + rank, 2), float(rank + 1), requires_grad=True)
    gathered = gather_with_grad(rows)
    (gathered * torch.arange(10.0).view(5, 2) * (rank + 1)).sum().backward()
    values = torch.tensor([1.0, 2.0, 3.0])[: 2 + rank]
    return {
        "gathered": gathered.detach(),
        "grad": rows.grad if rows.grad is not None else torch.zeros(()),
        "first_row": torch.tensor(first_row(rows)),
        "flags": gather(torch.tensor([rank == 0] * (1 + rank))),
        "mean": global_mean(values, values > rank),
    }


def test_loss_and_gradients_equal_one_process_with_the_whole_batch(two_workers: TwoWorkers):
    alone = Learner()
    loss = alone(*shard(None))
    loss.backward()
    first, second = two_workers.run(gradients)
    torch.testing.assert_close((first["loss"] + second["loss"]) / 2, loss.detach(), rtol=0, atol=1e-6)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(
            first[name], parameter.grad, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert torch.equal(first[name], second[name]), name


def test_rows_of_unequal_workers_are_exchanged_with_their_gradients(two_workers: TwoWorkers):
    first, second = two_workers.run(primitives)
    expected = torch.tensor([[1.0, 1.0]] * 2 + [[2.0, 2.0]] * 3)
    weights = torch.arange(10.0).view(5, 2) * 3  # both workers' losses: once and twice the same weights
    for result in (first, second):
        assert torch.equal(result["gathered"], expected)
        assert result["flags"].tolist() == [True, False, False]
    assert torch.equal(first["grad"], weights[:2]) and torch.equal(second["grad"], weights[2:])
    assert (first["first_row"], second["first_row"]) == (0, 2)
    # valid values: 1 and 2 on the first worker, 2 and 3 on the second
    assert float(first["mean"] + second["mean"]) / 2 == pytest.approx((1 + 2 + 2 + 3) / 4)


def test_without_a_process_group_everything_is_local():
    rows = torch.randn(3, 2, requires_grad=True)
    assert gather_with_grad(rows) is rows and gather(rows) is rows and first_row(rows) == 0
    assert float(global_mean(torch.tensor([1.0, 5.0, 3.0]), torch.tensor([True, False, True]))) == 2


def test_a_mean_of_nothing_is_zero_and_still_connected():
    values = torch.ones(3, requires_grad=True)
    mean = global_mean(values, torch.zeros(3, dtype=torch.bool))
    mean.backward()
    assert float(mean.detach()) == 0 and values.grad is not None and (values.grad == 0).all()
