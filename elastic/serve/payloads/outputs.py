"""The forms in which a request wants its embeddings: read from its message, written from one forward pass."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.errors import InvalidRequest, RequestTooLarge
from elastic.quantise import DTYPES, Dtype, Output, cut, quantise
from elastic.serve.batching import Level
from elastic.submodel import Slo

MAX_OUTPUTS = 16
"""In one request."""

DTYPE_OF: dict[int, Dtype] = {
    pb.DTYPE_UNSPECIFIED: "float32",
    **{pb.Dtype.Value(f"DTYPE_{name.upper()}"): name for name in DTYPES},
}
"""What a message's number stands for."""


def read_outputs(request: pb.EmbedRequest, widths: Collection[int]) -> tuple[Output, ...]:
    """The outputs that a request lists; `widths` are the trained ones.

    Raises:
        InvalidRequest: a width that was not trained, or a dtype that this server does not know.
        RequestTooLarge: more outputs than allowed.
    """
    if len(request.outputs) > MAX_OUTPUTS:
        raise RequestTooLarge("outputs", len(request.outputs), MAX_OUTPUTS)
    outputs = []
    for index, message in enumerate(request.outputs):
        if message.embed_dim and message.embed_dim not in widths:
            problem = f"{message.embed_dim} is none of the trained widths {sorted(widths)}"
            raise InvalidRequest(f"outputs[{index}].embed_dim", problem)
        if message.dtype not in DTYPE_OF:
            raise InvalidRequest(f"outputs[{index}].dtype", f"{message.dtype} is not a known dtype")
        outputs.append(Output(message.embed_dim, DTYPE_OF[message.dtype]))
    return tuple(outputs)


def with_width_of(outputs: Sequence[Output], slo: Slo) -> Slo:
    """The objective at the widest output, unless one output leaves the width to the objective.

    Raises:
        InvalidRequest: the objective names a width that no output has.
    """
    if not outputs or any(output.embed_dim == 0 for output in outputs):
        return slo
    if (slo.embed_dim, slo.min_embed_dim, slo.max_embed_dim) != (None, None, None):
        raise InvalidRequest("slo.embed_dim", "decides nothing, as every output names its width; leave one of them out")
    return replace(slo, embed_dim=max(output.embed_dim for output in outputs))


def vector_messages(embedding: np.ndarray, embed_dim: int, level: Level, outputs: Sequence[Output]) -> list[pb.Vector]:
    """One vector per output, from the whole embedding; `embed_dim` is the width that the objective decided."""
    vectors = []
    for output in outputs:
        width = output.embed_dim or embed_dim
        values, scale = quantise(cut(embedding, width), output.dtype)
        vectors.append(
            pb.Vector(
                embed_dim=width,
                dtype=f"DTYPE_{output.dtype.upper()}",
                values=values.tobytes(),
                scale=scale,
                quality=level.quality[width],
            )
        )
    return vectors
