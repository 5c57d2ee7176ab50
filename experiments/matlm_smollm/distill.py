"""A nested language model taught by its own full size, and how near each size comes to it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from elastic.model.decoder import Decoder
from elastic.submodel import Submodel

BETAS, MAX_NORM, WARMUP = (0.9, 0.95), 1.0, 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """How long and how fast."""

    steps: int = 60
    """Each trains one granularity, drawn uniformly, as in MatFormer."""
    batch_size: int = 4
    """Blocks a step."""
    lr: float = 5e-4
    """Of AdamW, after a tenth of the steps; falls to zero as a cosine."""
    seed: int = 0
    """Of the granularities."""


def distill(
    student: Decoder, teacher: Decoder, blocks: Tensor, config: Distillation, precision: torch.dtype
) -> Iterator[tuple[str, float]]:
    """Train the FFNs of `student` to predict what `teacher` predicts; yields granularity and KL, in nats, of each step.

    Attention, norms, embedding and head stay as they are. XL is one of the granularities: its units are shared.
    """
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(".mlp." in name)
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=BETAS, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share_of_lr(step, config.steps))
    names, sizes = zip(*student.space.granularities.items(), strict=True)
    draws = torch.randint(len(sizes), (config.steps,), generator=torch.Generator().manual_seed(config.seed)).tolist()
    device = student.lm_head.weight.device
    for step, draw in enumerate(draws):
        rows = torch.arange(step * config.batch_size, (step + 1) * config.batch_size) % len(blocks)
        tokens = blocks[rows].to(device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            with torch.no_grad():
                target = teacher(tokens, teacher.space.full)
            found = student(tokens, sizes[draw])
        loss = divergence(target.float(), found.float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
        optimizer.step()
        schedule.step()
        yield names[draw], loss.item()


def share_of_lr(step: int, steps: int) -> float:
    """Linear warm-up over the first tenth, then a cosine to zero."""
    warmup = max(1, round(steps * WARMUP))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def divergence(target: Tensor, found: Tensor) -> Tensor:
    """KL(target || found) of next-token logits, mean over tokens, in nats."""
    target, found = (F.log_softmax(logits.flatten(0, 1), dim=-1) for logits in (target, found))
    return F.kl_div(found, target, reduction="batchmean", log_target=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """How good a submodel is, and how near to the full model it was cut from, on held-out text."""

    nats: float
    """Cross-entropy per token."""
    agreement: float
    """Share of tokens where it would say next what the full model would, both having read the text."""
    acceptance: float
    """Mean chance that speculative sampling accepts its draft of the next token: what both distributions share."""


@torch.inference_mode()
def measure(
    decoder: Decoder, reference: Decoder, submodels: Sequence[Submodel], blocks: Tensor, precision: torch.dtype
) -> dict[Submodel, Fidelity]:
    """Of every submodel, against the full `reference`; blocks are read one at a time."""
    sums = {submodel: torch.zeros(3, dtype=torch.float64) for submodel in submodels}
    device = decoder.lm_head.weight.device
    for block in blocks.to(device).split(1):
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            expected = reference(block, reference.space.full)[0, :-1].float()
        for submodel in submodels:
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                found = decoder(block, submodel)[0, :-1].float()
            shared = torch.minimum(found.softmax(-1), expected.softmax(-1)).sum()
            agreed = (found.argmax(-1) == expected.argmax(-1)).sum()
            nats = F.cross_entropy(found, block[0, 1:], reduction="sum")
            sums[submodel] += torch.stack([nats.double(), agreed.double(), shared.double()]).cpu()
    count = blocks.numel() - len(blocks)  # the first token of a block is not predicted
    return {
        submodel: Fidelity(nats=nats / count, agreement=agreed / count, acceptance=shared / count)
        for submodel, (nats, agreed, shared) in ((key, value.tolist()) for key, value in sums.items())
    }
