"""One submodel as a single call that runs outside of Python: what is served, and so what is profiled.

Called from Python, a small model spends much of its time in the interpreter. It also gives the interpreter's lock away
in every operation and has to wait for it afterwards, for as long as the event loop and the decoding threads of the
same process keep it. A trace does neither: it is one call that holds no lock (`benchmarks/traced.py` measures both).

TorchScript is deprecated in favour of `torch.compile` and `torch.export`. Neither does this: the former compiles C++
for minutes on the machine that serves and still enters Python at every call, the latter's graphs are run by Python, or
hold a copy of the weights for each submodel. Should TorchScript go, this file is all that has to change.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, cast

import torch
from torch import Tensor, nn

from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.model.preprocess import CANVAS_CHANNELS, CANVAS_SCALE, to_model_input
from elastic.submodel import Submodel

EXAMPLES = 2
"""Inputs of the batch that is traced; a batch of one would be recorded as broadcast."""


def trace(
    encoder: Encoder,
    preprocess: Preprocess,
    modality: Literal["image", "text"],
    submodel: Submodel,
    dtype: str = "float32",
) -> Callable[..., Tensor]:
    """What serving calls with a batch of a modality."""
    if modality == "image":
        return trace_images(encoder, preprocess, submodel, dtype)
    return trace_texts(encoder, submodel, dtype)


def trace_images(
    encoder: Encoder, preprocess: Preprocess, submodel: Submodel, dtype: str = "float32"
) -> Callable[[Tensor], Tensor]:
    """From uint8 canvases `[batch, 4, side, side]` to normalised embeddings `[batch, full width]`.

    Any batch size; canvases of `CANVAS_SCALE` times the encoder's image size. To be called under
    `torch.inference_mode`, of an encoder in eval mode. It reads the encoder's weights, whose memory the trace shares: a
    change in place is seen.
    """
    width, side = encoder.space.full_embed_dim, CANVAS_SCALE * preprocess.image_size

    def call(canvases: Tensor) -> Tensor:
        return encoder.encode_images(to_model_input(canvases, preprocess), submodel, width)

    where = next(encoder.parameters()).device
    canvases = torch.zeros(EXAMPLES, CANVAS_CHANNELS, side, side, dtype=torch.uint8, device=where)
    return _trace(encoder, call, (canvases,), dtype)


def trace_texts(encoder: Encoder, submodel: Submodel, dtype: str = "float32") -> Callable[[Tensor, Tensor], Tensor]:
    """From tokens and their mask `[batch, length]` to normalised embeddings `[batch, full width]`.

    Any batch size and length; for the rest as `trace_images`.
    """
    width, text = encoder.space.full_embed_dim, encoder.config.text
    assert text is not None, "this encoder has no text tower"

    def call(tokens: Tensor, mask: Tensor) -> Tensor:
        return encoder.encode_texts(tokens, mask, submodel, width)

    tokens = torch.ones(EXAMPLES, text.max_tokens, dtype=torch.int64, device=next(encoder.parameters()).device)
    return _trace(encoder, call, (tokens, tokens.bool()), dtype)


class _Call(nn.Module):
    """A function of weights as a module, so that the trace holds them as they are and not as constants.

    Graphs live as long as the process, and constants with them; the weights of a module leave memory with it. They are
    buffers of one flat module here, because TorchScript takes four times as long to wrap every layer as to trace.
    """

    def __init__(self, call: Callable[..., Tensor], weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.call = call
        for index, weight in enumerate(weights):
            self.register_buffer(f"weight_{index}", weight)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(*inputs)


def record(
    call: Callable[..., Tensor], weights: Iterable[Tensor], examples: tuple[Tensor, ...]
) -> Callable[..., Tensor]:
    """A function of tensors as one call outside of Python, recorded with `examples`.

    `weights` are all tensors that it reads besides its arguments; the recording shares their memory. What it decides
    by numbers of Python stays decided. To be called under `torch.inference_mode`.
    """
    with torch.inference_mode(), _as_meant():
        return cast(Callable[..., Tensor], torch.jit.trace(_Call(call, weights).eval(), examples, check_trace=False))


def _trace(
    encoder: Encoder, call: Callable[..., Tensor], examples: tuple[Tensor, ...], dtype: str
) -> Callable[..., Tensor]:
    assert not encoder.training, "the encoder must be in eval mode"
    # Without the cache of casts: a cast that was made before the trace began would be missing in it.
    with torch.autocast(examples[0].device.type, torch.bfloat16, enabled=dtype != "float32", cache_enabled=False):
        return record(call, [*encoder.parameters(), *encoder.buffers()], examples)


@contextmanager
def _as_meant() -> Iterator[None]:
    """Without warnings of deprecation, and of branches that are taken once: on the image size, which stays as it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit")  # a FutureWarning or a DeprecationWarning, by release
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
        yield
