"""The shape of OpenAI's completions API, read into the messages of `elastic.v1` and written from them.

As for embeddings (`api/openai.py`): what is added stands under names that OpenAI does not use, unknown fields are
refused, and so are those that ask for what is not done here. No HTTP.
"""

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic.errors import InvalidRequest
from elastic.serve.api.openai import JsonObject, plain

DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""

DEFAULT_MAX_TOKENS = 16
"""OpenAI's."""

FINISH_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


class StreamOptions(BaseModel):
    """What a stream has besides its text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    """Whether one more chunk, without choices, tells the numbers of tokens."""
    include_obfuscation: bool = False
    """Not looked at: nothing is padded here."""


class CompletionsBody(BaseModel):
    """The body of `POST /v1/completions`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: Any
    """One text, or one list of tokens; a list may stand around it."""
    model: str = ""
    """Not looked at: a server has one model, and names it in its answer."""
    user: str = ""
    """Not looked at."""
    max_tokens: int | None = Field(default=DEFAULT_MAX_TOKENS, ge=1, lt=2**31)
    temperature: float | None = Field(default=1.0, ge=0)
    top_p: float | None = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: Any = None
    """One text or a list of them."""
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(default=None, ge=0, lt=2**31)
    token_latency_slo_ms: float | None = Field(default=None, gt=0)
    max_nats: float | None = Field(default=None, gt=0)
    draft: str = ""
    n: Literal[1] | None = 1
    best_of: Literal[1] | None = 1
    echo: Literal[False] | None = False
    logprobs: None = None
    logit_bias: None = None
    suffix: None = None
    frequency_penalty: float | None = Field(default=0.0, ge=0, le=0)
    presence_penalty: float | None = Field(default=0.0, ge=0, le=0)
    """From `n` on these are known, but only values that change nothing are."""

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


def generate_request(body: CompletionsBody) -> pb.GenerateRequest:
    """The same as a message.

    Raises:
        InvalidRequest: more than one prompt, or what is neither text nor tokens.
    """
    sampling = pb.Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=body.top_p,
        seed=body.seed,
    )
    request = pb.GenerateRequest(
        max_new_tokens=body.max_tokens or DEFAULT_MAX_TOKENS,
        sampling=sampling,
        stop=_words(body.stop),
        slo=pb.TokenSlo(token_latency_ms=body.token_latency_slo_ms or 0.0, max_nats=body.max_nats),
        draft=body.draft,
    )
    prompt = _one(body.prompt)
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.CopyFrom(_token_ids(prompt))
    return request


def _one(prompt: object) -> str | list[int]:
    match prompt:
        case str():
            return prompt
        case [str() | list() as only]:
            return _one(only)
        case [str() | list(), *_]:
            raise InvalidRequest("prompt", f"lists {len(prompt)} prompts; send each in a request of its own")
        case list() if all(type(token) is int for token in prompt):
            return prompt
        case _:
            raise InvalidRequest("prompt", "is neither a text nor a list of tokens")


def _token_ids(tokens: list[int]) -> pb.TokenIds:
    try:
        return pb.TokenIds(ids=tokens)
    except ValueError as error:
        raise InvalidRequest("prompt", "holds a number that is no token") from error


def _words(stop: object) -> list[str]:
    match stop:
        case None:
            return []
        case str():
            return [stop]
        case list() if all(isinstance(word, str) for word in stop):
            return stop
        case _:
            raise InvalidRequest("stop", "is neither a text nor a list of texts")


class Answer:
    """The chunks of one completion, which share their name and time, or all of it at once."""

    def __init__(self, body: CompletionsBody, name: str, created_s: int, model: str) -> None:
        self._body = body
        self._head = {"id": name, "object": "text_completion", "created": created_s, "model": model}

    def whole(self, text: str, finish: pb.Finish) -> JsonObject:
        """The answer to a request that asked for no stream."""
        return self._chunk(text, finish) | {"usage": usage(finish.usage)} | _explanation(finish)

    def events(self, reply: pb.GenerateReply) -> bytes:
        """Server-sent events for one reply; nothing where its tokens are not yet text."""
        is_last = reply.HasField("finish")
        chunks = []
        if reply.text or is_last:
            explanation = _explanation(reply.finish) if is_last else {}
            chunks.append(self._chunk(reply.text, reply.finish if is_last else None) | explanation)
        if is_last and self._body.includes_usage:
            chunks.append(self._head | {"choices": [], "usage": usage(reply.finish.usage)})
        return b"".join(map(event, chunks)) + (DONE if is_last else b"")

    def _chunk(self, text: str, finish: pb.Finish | None) -> JsonObject:
        reason = None if finish is None else FINISH_REASONS[finish.reason]
        return self._head | {"choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": reason}]}


def event(value: JsonObject) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def usage(found: pb.Usage) -> JsonObject:
    """Numbers of tokens."""
    prompt, new = found.num_prompt_tokens, found.num_new_tokens
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _explanation(finish: pb.Finish) -> JsonObject:
    return {"elastic": plain(finish.explanation)}
