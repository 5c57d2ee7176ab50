"""Which hidden units of a decoder's feed-forward blocks matter most, and putting them first.

The hidden units of a model that was not trained nested stand in no order, so its first ones make a poor submodel.
Any order of them computes the same full model. The most important first makes the smaller submodels the best
that they can be without training.

Source: DynaBERT (arXiv 2004.04037) section 3.1 sorts neurons before nesting, Minitron (arXiv 2407.14679) section 2.2
ranks them by their activations on a small text. Deviation: the score counts what a unit adds to the residual stream,
its mean absolute value times the norm of its column of `down`; no gradients.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from elastic.model.decoder import Decoder


@torch.no_grad()
def measure_importance(decoder: Decoder, batches: Iterable[Int[Tensor, "_ _"]]) -> list[Float[Tensor, " _"]]:
    """For every block, what each hidden unit of the full model adds to the residual stream of a mean token, in float64.

    The tokens are those of any text of the kind that the model is for; some ten thousand are enough.
    """
    mlps = [block.get_submodule("mlp") for block in decoder.model.layers]
    totals = [torch.zeros(size, dtype=torch.float64) for size in decoder.config.full_ffn_dims]
    hooks = [mlp.register_forward_pre_hook(_adder(total)) for mlp, total in zip(mlps, totals, strict=True)]
    num_tokens = 0
    try:
        for tokens in batches:
            decoder.run(decoder.embed(tokens), decoder.space.full)
            num_tokens += tokens.numel()
    finally:
        for hook in hooks:
            hook.remove()
    assert num_tokens, "nothing to measure on"
    norms = (mlp.get_parameter("down_proj.weight").double().norm(dim=0).cpu() for mlp in mlps)
    return [total / num_tokens * norm for total, norm in zip(totals, norms, strict=True)]


@torch.no_grad()
def sort_hidden_units(decoder: Decoder, importance: Sequence[Float[Tensor, " _"]]) -> None:
    """Put the most important hidden units of every block first, in place.

    The full model stays the same but for rounding. Not for a model that was trained nested: its first units have
    learned to do without the others.
    """
    for block, scores in zip(decoder.model.layers, importance, strict=True):
        parameters = dict(block.get_submodule("mlp").named_parameters())
        order = scores.argsort(descending=True, stable=True).to(parameters["down_proj.weight"].device)
        for name, parameter in parameters.items():
            if name == "down_proj.weight":
                parameter.copy_(parameter[:, order])
            elif name != "down_proj.bias":
                parameter.copy_(parameter[order])


def _adder(total: Tensor) -> Callable[[nn.Module, Any], None]:
    def add(mlp: nn.Module, arguments: Any) -> None:
        hidden = mlp.hidden(*arguments)  # pyright: ignore[reportCallIssue]
        total.add_(hidden.abs().sum((0, 1), dtype=torch.float64).cpu())

    return add
