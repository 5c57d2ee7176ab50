"""The HTTP face of a replica that generates: OpenAI's completions, streamed or not, its list of models, health.

A request is read into the message that a gRPC call would have carried. Up to the first reply a failure has its status;
behind that the status has been sent, and a stream ends with an event that holds OpenAI's error instead. No ray.
"""

import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic.serve.api.health import Health
from elastic.serve.api.http import HeaderCaller, application, error_response, read_bytes
from elastic.serve.api.openai import read_json
from elastic.serve.generation.openai import Answer, CompletionsBody, event, generate_request
from elastic.serve.generation.service import GenerationService, Replies

STREAM_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}
"""Nobody on the way may keep events back."""


def http_app(service: GenerationService, health: Health, max_message_bytes: int) -> Starlette:
    """The ASGI application of one replica."""

    async def completions(request: Request) -> Response:
        caller = HeaderCaller(request)
        service.check(caller)
        body = read_json(CompletionsBody, await read_bytes(request, max_message_bytes))
        answer = Answer(body, f"cmpl-{secrets.token_hex(12)}", int(time.time()), service.served.name)
        replies = service.generate(generate_request(body), caller)
        if not body.stream:
            return JSONResponse(await _whole(answer, replies))
        first = await anext(replies)  # a refusal is raised here, and answered with its status
        return StreamingResponse(_events(answer, first, replies), headers=STREAM_HEADERS)

    return application({"/v1/completions": completions}, service.info, health)


async def _whole(answer: Answer, replies: Replies) -> dict[str, Any]:
    text, finish = "", pb.Finish()
    async with aclosing(replies):
        async for reply in replies:
            text += reply.text
            finish = reply.finish
    return answer.whole(text, finish)


async def _events(answer: Answer, first: pb.GenerateReply, replies: Replies) -> AsyncIterator[bytes]:
    async with aclosing(replies):
        yield answer.events(first)
        try:
            async for reply in replies:
                yield answer.events(reply)
        except Exception as error:
            # As in `api.grpc.answer_stream`: what is not in the table must not reach the caller as it is.
            yield event(json.loads(bytes(error_response(error).body)))
