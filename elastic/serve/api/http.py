"""The HTTP face of the service: OpenAI's embeddings API, its list of models, and a health check.

It reads a request into the message that a gRPC call would have carried and hands it to the same service. Errors are
those of `grpc.STATUS`, with the HTTP status of the table here. No ray: tests call the application in-process.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from elastic import errors
from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1 import generation_pb2 as generation_pb
from elastic.errors import ElasticError, InvalidRequest, RequestTooLarge
from elastic.serve.access.gate import Caller
from elastic.serve.api.grpc import RETRY_METADATA, status_of
from elastic.serve.api.health import Health
from elastic.serve.api.openai import (
    embed_request,
    embeddings_answer,
    error_answer,
    model_answer,
    parameter_of,
    read_body,
)
from elastic.serve.api.service import EmbeddingService

Endpoint = Callable[[Request], Awaitable[Response]]
Info = Callable[[Caller], pb.InfoReply | generation_pb.GenerationInfoReply]
"""What a caller is told of the model; raises if it may not ask."""

BODY_S = 30.0
"""How long the body of a request may take to arrive, however steadily it drips."""
BASE64_GROWTH = 4 / 3
"""How much longer the same images are in JSON than in a gRPC message."""


@dataclass(frozen=True, slots=True)
class HttpStatus:
    """How a request that failed is answered."""

    number: int
    kind: str
    """OpenAI's `type`."""
    code: str
    can_retry: bool = False
    """Whether the same request may succeed if it is sent again; OpenAI's clients obey."""


INTERNAL = HttpStatus(500, "server_error", "internal_error")

HTTP_STATUS: dict[type[ElasticError], HttpStatus] = {
    errors.InvalidRequest: HttpStatus(400, "invalid_request_error", "invalid_request"),
    errors.RequestTooLarge: HttpStatus(413, "invalid_request_error", "request_too_large"),
    errors.SloInfeasible: HttpStatus(422, "invalid_request_error", "slo_infeasible"),
    errors.Overloaded: HttpStatus(429, "rate_limit_error", "overloaded", can_retry=True),
    errors.RateLimited: HttpStatus(429, "rate_limit_error", "rate_limit_exceeded", can_retry=True),
    errors.Unauthenticated: HttpStatus(401, "authentication_error", "invalid_api_key"),
    # A budget that is over does not come back: a client that repeats it by itself only adds load.
    errors.DeadlineExceeded: HttpStatus(504, "timeout_error", "deadline_exceeded"),
    errors.ServerUnavailable: HttpStatus(503, "server_error", "unavailable", can_retry=True),
    errors.ConfigError: INTERNAL,
    errors.DataError: INTERNAL,
    errors.CheckpointError: INTERNAL,
    errors.ProfileError: INTERNAL,
    errors.ElasticError: INTERNAL,
}
"""Every error of the package and its HTTP status; as in `grpc.STATUS`, internal ones are not described."""


@dataclass(frozen=True, slots=True)
class HeaderCaller:
    """The sender of an HTTP request."""

    request: Request

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        """Its headers; among them may be `x-deadline-unix-ms` and the key."""
        return self.request.headers.items()

    def peer(self) -> str:
        """The ingress. A replica's HTTP port, unlike that of gRPC, is on the server's own interface only."""
        return "unix:ingress"


def http_app(service: EmbeddingService, health: Health, max_message_bytes: int) -> Starlette:
    """The ASGI application of one replica."""
    max_body_bytes = math.ceil(max_message_bytes * BASE64_GROWTH)

    async def embeddings(request: Request) -> Response:
        caller = HeaderCaller(request)
        service.check(caller)
        body = read_body(await read_bytes(request, max_body_bytes))
        reply = await service.embed(embed_request(body), caller)
        return JSONResponse(embeddings_answer(reply, body, service.info().model_name))

    return application({"/v1/embeddings": embeddings}, service.info, health)


def application(posts: Mapping[str, Endpoint], info: Info, health: Health) -> Starlette:
    """Endpoints by path, the list of the one model, and `/health`; errors are answered as `error_response` says."""
    started_s = int(time.time())

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model_answer(info(HeaderCaller(request)), started_s)]})

    async def model(request: Request) -> Response:
        found = info(HeaderCaller(request))
        if request.path_params["name"] != found.model_name:
            raise HTTPException(404, f"the one model here is {found.model_name}")
        return JSONResponse(model_answer(found, started_s))

    async def healthy(request: Request) -> Response:
        is_serving = await health.is_serving()
        return JSONResponse({"status": "serving" if is_serving else "not serving"}, 200 if is_serving else 503)

    routes = [Route(path, _answered(endpoint), methods=["POST"]) for path, endpoint in posts.items()]
    routes += [
        Route("/v1/models", _answered(models)),
        Route("/v1/models/{name}", _answered(model)),
        Route("/health", _answered(healthy)),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _not_here})


def error_response(error: Exception) -> Response:
    """The answer to a request that failed; an internal error is logged and numbered."""
    status = status_of(error)
    http = INTERNAL
    if isinstance(error, ElasticError) and status.code is not grpc.StatusCode.INTERNAL:
        http = HTTP_STATUS[type(error)]
    parameter, message = None, status.message
    if isinstance(error, InvalidRequest):
        parameter = parameter_of(error.field)
        message = parameter + message.removeprefix(error.field)
    headers = {"x-should-retry": "true" if http.can_retry else "false"}
    if status.retry_after_ms is not None:
        # Whole seconds are all that the standard header can say; OpenAI's clients look at the other one first.
        headers["retry-after"] = str(math.ceil(status.retry_after_ms / 1000))
        headers[RETRY_METADATA] = f"{status.retry_after_ms:.0f}"
    return JSONResponse(error_answer(message, http.kind, http.code, parameter), http.number, headers)


def _answered(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except HTTPException:
            raise
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:
            # As in `grpc.answer`: what is not in the table must not reach the caller as it is.
            return error_response(error)

    return answer


async def _not_here(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind, code = "invalid_request_error", "not_found" if error.status_code == 404 else "method_not_allowed"
    return JSONResponse(error_answer(error.detail, kind, code), error.status_code, error.headers)


async def read_bytes(request: Request, max_bytes: int) -> bytes:
    """The body of a request.

    Raises:
        RequestTooLarge: it is longer than that.
        InvalidRequest: it took longer than `BODY_S`.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise RequestTooLarge("body", len(body), max_bytes)
    except TimeoutError as error:
        raise InvalidRequest("body", f"did not arrive within {BODY_S:g} s") from error
    return bytes(body)
