"""What data parallelism changes about a loss: which rows it sees, and what its mean divides by.

Contract with `DistributedDataParallel`, which averages gradients over workers: the average over workers of the
local gradients equals the gradient of the loss of the whole batch. Without a process group everything here is the
identity, so objectives call it always. Workers may hold different numbers of rows.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor


def gather(rows: Shaped[Tensor, "rows ..."]) -> Shaped[Tensor, "all_rows ..."]:
    """The rows of all workers, in order of rank, without gradient."""
    if not _is_parallel():
        return rows
    return torch.cat(_all_gather(rows.detach()))


def gather_with_grad(rows: Float[Tensor, "rows ..."]) -> Float[Tensor, "all_rows ..."]:
    """The rows of all workers, in order of rank; gradients flow back to the worker that owns the row.

    Each worker receives the sum of all workers' gradients for its rows. When every worker computes the same loss of
    all rows, that is `world_size` times the gradient, which DDP's average turns into exactly the gradient.
    """
    if not _is_parallel():
        return rows
    gathered = _GatherRows.apply(rows)
    assert isinstance(gathered, Tensor)
    return gathered


def first_row(rows: Shaped[Tensor, "rows ..."]) -> int:
    """Where this worker's rows begin among the gathered ones."""
    if not _is_parallel():
        return 0
    counts = gather(torch.tensor([len(rows)], device=rows.device))
    return int(counts[: dist.get_rank()].sum())


def global_mean(values: Float[Tensor, " rows"], valid: Bool[Tensor, " rows"]) -> Float[Tensor, ""]:
    """The mean over all workers' valid rows, as seen by one worker: these local values average to it over workers.

    Zero, but still connected to `values`, when no worker has a valid row.
    """
    total = torch.where(valid, values, 0).sum()
    count = valid.sum()
    if not _is_parallel():
        return total / count.clamp(min=1)
    dist.all_reduce(count)
    return total * dist.get_world_size() / count.clamp(min=1)


def global_sum(values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum of every worker's values, without gradient; all workers call it together."""
    total = values.detach().clone()
    if _is_parallel():
        dist.all_reduce(total)
    return total


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = _all_gather(rows)
        ctx.start = sum(len(part) for part in parts[: dist.get_rank()])
        ctx.count = len(rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        total = grad_outputs[0].contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.count]


def _is_parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all_gather(rows: Tensor) -> list[Tensor]:
    """Rows by worker; shorter parts are padded for the exchange, because collectives need equal shapes."""
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    sizes = [int(count) for count in counts]
    padding = (0, 0) * (rows.ndim - 1) + (0, max(sizes) - len(rows))
    padded = F.pad(rows, padding).contiguous()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]
