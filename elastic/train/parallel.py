"""How several workers share one model: each a whole copy (DDP), or each a part of every weight (FSDP2).

Both average gradients over workers, so they train the same weights, and their checkpoints are the same. Under FSDP a
worker keeps, between passes, its part of weights, gradients, moments and averaged weights. A pass gathers the weights
of one transformer block at a time and those outside of the blocks for its whole length. Alone, a worker is neither.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from elastic.model.encoder import Encoder
from elastic.model.nested import nested_block
from elastic.train.learner import Learner
from elastic.train.window import num_workers, rank


def share(learner: Learner, average: Encoder, parallel: Literal["ddp", "fsdp"], device: torch.device) -> nn.Module:
    """The module to call in place of `learner`, whose gradients the workers of the default process group average."""
    if num_workers() == 1 or parallel == "ddp":
        return replicate(learner)
    mesh = init_device_mesh(device.type, (num_workers(),))
    _shard_blocks(learner.encoder, mesh)
    _shard_blocks(average, mesh)
    # Only a backward pass would hide the averaged weights again, and they have none.
    fully_shard(average, mesh=mesh, reshard_after_forward=True)
    fully_shard(learner, mesh=mesh)
    for method in learner.entries:
        register_fsdp_forward_method(learner, method)
    return learner


def replicate(learner: nn.Module) -> nn.Module:
    """The module to call in place of `learner`, of which every worker keeps a whole copy (DDP); alone, itself.

    DDP looks for unused parameters, which lets a step skip objectives that its stream does not feed. It also keeps
    DDP from rearranging its buckets after the first step, which would change the order of sums and so make a resumed
    run of three or more workers differ in the last bit.
    """
    return learner if num_workers() == 1 else DistributedDataParallel(learner, find_unused_parameters=True)


def _shard_blocks(encoder: Encoder, mesh: DeviceMesh) -> None:
    """Each block's weights are gathered by hooks around its own call, so the block is called to run nested."""
    for block in encoder.blocks:
        block.forward = partial(nested_block, block)
        fully_shard(block, mesh=mesh)
    encoder.run_block = _call


def _call(block: nn.Module, x: Tensor, ffn_dim: int, attn_mask: Tensor | None) -> Tensor:
    return block(x, ffn_dim, attn_mask)


@contextmanager
def exchanging(module: nn.Module, sync: bool) -> Iterator[None]:
    """One forward and backward pass of what `share` returned, after which gradients are those of all at `sync`.

    DDP holds back what it summed until then. FSDP exchanges after every pass, because only then are whole gradients
    nobody's to keep.
    """
    if isinstance(module, DistributedDataParallel) and not sync:
        with module.no_sync():
            yield
    else:
        yield


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Float[Tensor, ""]:
    """Scale gradients down to a global norm; returns the norm before."""
    having = [parameter for parameter in parameters if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in having if parameter.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    clip_grads_with_norm_(having, max_norm, norm)
    return norm


def whole_encoder(encoder: Encoder) -> Encoder:
    """`encoder`, or if it is sharded a whole copy on the worker of rank 0; every worker calls this together.

    On the other workers the copy has no data.
    """
    if not any(isinstance(parameter, DTensor) for parameter in encoder.parameters()):
        return encoder
    state = whole_state(encoder)
    with torch.device("meta"):
        copy = Encoder(encoder.config)
    if rank() == 0:
        device = next(encoder.parameters()).device
        copy.load_state_dict({name: value.to(device) for name, value in state.items()}, assign=True)
    return copy.eval().requires_grad_(False)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module. What was sharded is whole on the worker of rank 0, on its CPU, and empty on the others.

    Every worker calls this together.
    """
    return {name: _whole(value) for name, value in module.state_dict().items()}


def load_whole_state(module: nn.Module, saved: dict[str, Tensor]) -> None:
    """Take from `whole_state`, as it was on rank 0, what this worker keeps of it."""
    kept = module.state_dict()
    module.load_state_dict({name: _part(value, kept[name]) for name, value in saved.items()})


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`Optimizer.state_dict`, as `whole_state` does it."""
    state = optimizer.state_dict()
    moments = {
        number: {name: _whole(value) for name, value in of_parameter.items()}
        for number, of_parameter in state["state"].items()
    }
    return state | {"state": moments}


def load_whole_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take from `whole_optimizer_state`, as it was on rank 0, what this worker keeps of it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {
            # AdamW's count of steps is no moment: it has no axes, and stays whole.
            name: _part(value, parameters[number]) if value.shape == parameters[number].shape else value
            for name, value in of_parameter.items()
        }
        for number, of_parameter in saved["state"].items()
    }
    optimizer.load_state_dict(saved | {"state": moments})


def _whole(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    whole = tensor.full_tensor()
    return whole.cpu() if rank() == 0 else whole.new_empty(0)


def _part(tensor: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor):
        return tensor
    # Every worker has read the same file, so nothing is sent.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
