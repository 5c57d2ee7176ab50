"""The shape of OpenAI's embeddings API, read into the messages of `elastic.v1` and written from them.

A request that OpenAI's client libraries send is understood; what is added stands under names that OpenAI does not use
(`latency_slo_ms`, `min_quality`, `output_dtype`, images as inputs), and what an answer adds stands under `elastic`.
Unknown fields are refused, so that a misspelt objective is not ignored. No HTTP here.
"""

import base64
import binascii
import re
from typing import Any, Literal, TypeVar

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1 import generation_pb2 as generation_pb
from elastic.errors import InvalidRequest
from elastic.quantise import Dtype, from_bytes, parse_dtype
from elastic.serve.payloads.outputs import DTYPE_OF

JsonObject = dict[str, Any]
_Body = TypeVar("_Body", bound=BaseModel)

DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)

PARAMETERS = {
    "slo.embed_dim": "dimensions",
    "slo.latency_ms": "latency_slo_ms",
    "slo.min_quality": "min_quality",
    "outputs[0].dtype": "output_dtype",
    "text": "prompt",
    "token_ids": "prompt",
    "max_new_tokens": "max_tokens",
    "sampling.temperature": "temperature",
    "sampling.top_k": "top_k",
    "sampling.top_p": "top_p",
    "slo.token_latency_ms": "token_latency_slo_ms",
    "slo.max_nats": "max_nats",
}
"""What this API calls the fields that an error of the service may name; `inputs[...]` is `input[...]`."""


class EmbeddingsBody(BaseModel):
    """The body of `POST /v1/embeddings`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input: Any
    """A string, an object with `image` or `text`, or a list of those; a string that is a data URI is an image."""
    model: str = ""
    """Not looked at: a server has one model, and names it in its answer."""
    user: str = ""
    """Not looked at."""
    dimensions: int | None = Field(default=None, ge=1, lt=2**31)
    encoding_format: Literal["float", "base64"] = "float"
    """Numbers, or base64 of little-endian float32."""
    latency_slo_ms: float | None = Field(default=None, gt=0)
    min_quality: float | None = Field(default=None, ge=0, le=1)
    output_dtype: str = "float"
    """A name of `elastic.quantise.Dtype`; `float` is float32."""

    @property
    def dtype(self) -> Dtype:
        """What the vectors are written as."""
        return "float32" if self.output_dtype == "float" else parse_dtype(self.output_dtype)


def read_json(kind: type[_Body], data: bytes) -> _Body:
    """The body of a request.

    Raises:
        InvalidRequest: it is not JSON, or a field is unknown, missing or of the wrong type.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "body"
        raise InvalidRequest(field, first["msg"]) from error


def read_body(data: bytes) -> EmbeddingsBody:
    """The body of `POST /v1/embeddings`.

    Raises:
        InvalidRequest: as in `read_json`, or a dtype that is none, or not as it is to be written.
    """
    body = read_json(EmbeddingsBody, data)
    try:
        dtype = body.dtype
    except InvalidRequest as error:
        raise InvalidRequest("output_dtype", error.problem) from error
    if body.encoding_format == "base64" and dtype != "float32":
        # OpenAI's clients ask for base64 unless told not to, and read it as float32 whatever it is.
        raise InvalidRequest("encoding_format", f'base64 is float32; ask for "float" to get {dtype} as numbers')
    return body


def embed_request(body: EmbeddingsBody) -> pb.EmbedRequest:
    """The same as a message.

    Raises:
        InvalidRequest: an input is neither a text nor an image.
    """
    items = body.input if isinstance(body.input, list) else [body.input]
    inputs = [_input(item, f"input[{index}]") for index, item in enumerate(items)]
    slo = pb.Slo(latency_ms=body.latency_slo_ms or 0.0, min_quality=body.min_quality)
    if body.dimensions is not None:
        slo.embed_dim = body.dimensions
    dtype = body.dtype
    outputs = [] if dtype == "float32" else [pb.Output(dtype=f"DTYPE_{dtype.upper()}")]
    return pb.EmbedRequest(inputs=inputs, slo=slo, outputs=outputs)


def embeddings_answer(reply: pb.EmbedReply, body: EmbeddingsBody, model: str) -> JsonObject:
    """The answer to `POST /v1/embeddings`."""
    num_tokens = sum(item.explanation.num_tokens for item in reply.embeddings)
    return {
        "object": "list",
        "data": [_datum(item, index, body) for index, item in enumerate(reply.embeddings)],
        "model": model,
        "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
        "elastic": {
            "model_version": reply.model_version,
            "total_ms": reply.total_ms,
            "slack_ms": reply.slack_ms,
            "slo_met": reply.slo_met,
        },
    }


def model_answer(info: pb.InfoReply | generation_pb.GenerationInfoReply, created_s: int) -> JsonObject:
    """The one model that is served, as an entry of `GET /v1/models`; `elastic` holds what the RPC `Info` answers."""
    return {
        "id": info.model_name,
        "object": "model",
        "created": created_s,
        "owned_by": "elastic",
        "elastic": plain(info),
    }


def error_answer(message: str, kind: str, code: str, parameter: str | None = None) -> JsonObject:
    """The body of an answer that is an error."""
    return {"error": {"message": message, "type": kind, "param": parameter, "code": code}}


def parameter_of(field: str) -> str:
    """What this API calls a field that an error names."""
    return PARAMETERS.get(field, re.sub(r"^inputs\b", "input", field))


def _input(item: object, field: str) -> pb.Input:
    match item:
        case str() if DATA_URI.match(item):
            return pb.Input(image=_decoded(item, field))
        case str():
            return pb.Input(text=item)
        case {"text": str(text), **rest} if not rest:
            return pb.Input(text=text)
        case {"image": str(image), **rest} if not rest:
            return _image(image, field)
        case int() | list():
            raise InvalidRequest(field, "token numbers belong to another model's tokenizer; send the text itself")
        case _:
            raise InvalidRequest(field, 'is neither a string nor {"image": "data:..."} nor {"text": "..."}')


def _image(text: str, field: str) -> pb.Input:
    if DATA_URI.match(text):
        return pb.Input(image=_decoded(text, field))
    if re.match("https?:", text, re.IGNORECASE):
        return pb.Input(image_url=text)
    raise InvalidRequest(field, "image is neither data:image/...;base64,... nor an http(s) URL")


def _decoded(uri: str, field: str) -> bytes:
    try:
        return base64.b64decode(uri.partition(",")[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(field, "its data URI is not valid base64") from error


def _datum(item: pb.Embedding, index: int, body: EmbeddingsBody) -> JsonObject:
    explanation = plain(item.explanation)
    values = item.values_f32
    if item.vectors:
        (vector,) = item.vectors
        values = vector.values
        explanation |= {"dtype": DTYPE_OF[vector.dtype], "scale": vector.scale}
    is_text = body.encoding_format == "base64"
    embedding = base64.b64encode(values).decode() if is_text else from_bytes(values, body.dtype).tolist()
    return {"object": "embedding", "index": index, "embedding": embedding, "elastic": explanation}


def plain(message: Message) -> JsonObject:
    """A message as JSON values, its fields named as in the .proto file and none left out for being zero."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
