"""The application in-process: what OpenAI's own client makes of it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx2
import openai
import pytest

from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic.errors import DeadlineExceeded, Overloaded
from elastic.serve.access.gate import Caller
from elastic.serve.api.health import Health
from elastic.serve.generation.http import http_app
from elastic.serve.generation.service import GenerationService

FINISH = pb.Finish(reason=pb.FINISH_REASON_LENGTH, usage=pb.Usage(num_prompt_tokens=2, num_new_tokens=2))


class Served:
    name = "tiny"


class FakeService(GenerationService):
    """Replies as a test says; an error among the replies is raised in its place."""

    def __init__(self, *replies: pb.GenerateReply | Exception) -> None:
        self.replies = replies
        self.requests: list[pb.GenerateRequest] = []
        self.headers: list[dict[str, str]] = []
        self.was_closed = False

    @property
    def served(self) -> Any:
        return Served()

    def check(self, caller: Caller) -> None:
        self.headers.append(dict(caller.invocation_metadata()))

    async def generate(
        self, request: pb.GenerateRequest, caller: Caller | None
    ) -> AsyncGenerator[pb.GenerateReply, None]:
        self.requests.append(request)
        try:
            for reply in self.replies:
                if isinstance(reply, Exception):
                    raise reply
                yield reply
        finally:
            self.was_closed = True

    def info(self, caller: Caller | None = None) -> pb.GenerationInfoReply:
        return pb.GenerationInfoReply(model_name="tiny", limits=pb.GenerationLimits(max_tokens=7))


TWO = (pb.GenerateReply(text="a", token_ids=[1]), pb.GenerateReply(text="b", token_ids=[2], finish=FINISH))


async def is_well() -> bool:
    return True


def with_client(service: GenerationService, scenario: Callable[[openai.AsyncOpenAI], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        app = http_app(service, Health(is_well), max_message_bytes=200)
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
        async with openai.AsyncOpenAI(
            base_url="http://test/v1", api_key="k", http_client=http, max_retries=0
        ) as client:
            return await scenario(client)

    return asyncio.run(run())


def test_openais_client_reads_a_whole_answer() -> None:
    service = FakeService(*TWO)
    found = with_client(service, lambda client: client.completions.create(model="m", prompt="x", max_tokens=2))
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("ab", "length")
    assert (found.usage.total_tokens, found.model) == (4, "tiny")
    assert service.headers[0]["authorization"] == "Bearer k"


def test_openais_client_reads_a_stream() -> None:
    async def read(client: openai.AsyncOpenAI) -> list[Any]:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        stream = await client.completions.create(model="m", prompt="x", **options)  # type: ignore[call-overload]
        return [chunk async for chunk in stream]

    first, second, usage = with_client(FakeService(*TWO), read)
    assert [first.choices[0].text, second.choices[0].text] == ["a", "b"]
    assert [first.choices[0].finish_reason, second.choices[0].finish_reason] == [None, "length"]
    assert (usage.choices, usage.usage.completion_tokens) == ([], 2)
    assert first.id == second.id == usage.id


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_has_its_status_streamed_or_not(stream: bool) -> None:
    service = FakeService(Overloaded("full", 30.0))
    with pytest.raises(openai.RateLimitError) as raised:
        with_client(service, lambda client: client.completions.create(model="m", prompt="x", stream=stream))
    assert raised.value.response.headers["retry-after-ms"] == "30"


def test_what_fails_behind_the_first_piece_ends_the_stream_with_openais_error() -> None:
    async def read(client: openai.AsyncOpenAI) -> list[str]:
        stream = await client.completions.create(model="m", prompt="x", stream=True)
        try:
            async for chunk in stream:
                texts.append(chunk.choices[0].text)
        except openai.APIError as error:
            texts.append(str(error.code))
        return texts

    texts: list[str] = []
    assert with_client(FakeService(TWO[0], DeadlineExceeded(10.0, 1.0)), read) == ["a", "deadline_exceeded"]


def test_an_error_names_the_field_as_this_api_does() -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        with_client(FakeService(), lambda client: client.completions.create(model="m", prompt="x", n=2))
    assert raised.value.param == "n"


def test_a_body_above_the_limit_is_refused() -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        with_client(FakeService(), lambda client: client.completions.create(model="m", prompt="x" * 300))
    assert raised.value.status_code == 413


def test_the_model_is_listed_with_what_can_be_chosen() -> None:
    async def models(client: openai.AsyncOpenAI) -> list[Any]:
        return [model async for model in client.models.list()]

    (model,) = with_client(FakeService(), models)
    assert (model.id, model.elastic["limits"]["max_tokens"]) == ("tiny", 7)


def test_a_stream_and_a_grpc_call_have_the_same_text(service: GenerationService) -> None:
    fields = {"prompt": "the cat", "max_tokens": 20, "temperature": 0.0}

    async def read(client: openai.AsyncOpenAI) -> tuple[str, str, str]:
        request = pb.GenerateRequest(text="the cat", max_new_tokens=20)
        own = "".join([reply.text async for reply in service.generate(request, None)])
        whole = await client.completions.create(model="m", **fields)  # type: ignore[call-overload]
        stream = await client.completions.create(model="m", stream=True, **fields)  # type: ignore[call-overload]
        return own, whole.choices[0].text, "".join([chunk.choices[0].text async for chunk in stream])

    own, whole, streamed = with_client(service, read)
    assert own == whole == streamed
