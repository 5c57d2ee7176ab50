"""What both clients make of a server that generates, and what they send it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from elastic._pb.elastic.v1 import embedding_pb2 as common
from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic._pb.elastic.v1.generation_pb2_grpc import (
    GenerationServiceServicer,
    add_GenerationServiceServicer_to_server,
)
from elastic.client import AsyncClient, Client
from elastic.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServerUnavailable
from elastic.generated import Generated, generate_request
from elastic.submodel import Submodel

FINISH = pb.Finish(
    reason=pb.FINISH_REASON_LENGTH,
    usage=pb.Usage(num_prompt_tokens=2, num_new_tokens=3),
    explanation=pb.GenerationExplanation(
        submodel="ffn=64x2",
        granularity="XL",
        draft="S",
        gamma=4,
        token_ms=5.0,
        slo_met=True,
        limited_by=common.LIMIT_BACKLOG,
        drafts=pb.Drafts(
            num_drafts=2, num_draft_tokens=8, num_accepted_tokens=5, num_accepted_tokens_per_pos=[2, 2, 1]
        ),
    ),
)
PIECES = (pb.GenerateReply(text="a", token_ids=[1]), pb.GenerateReply(text="bc", token_ids=[2, 3], finish=FINISH))

Respond = Callable[[grpc.ServicerContext, int], Iterator[pb.GenerateReply]]


def end(context: grpc.ServicerContext, code: grpc.StatusCode, *metadata: tuple[str, str]) -> None:
    context.set_trailing_metadata(metadata)
    context.abort(code, "no")


class FakeGeneration(GenerationServiceServicer):
    """Answers the first, second, ... call as the test says."""

    def __init__(self) -> None:
        self.requests: list[pb.GenerateRequest] = []
        self.metadata: list[dict[str, str]] = []
        self.was_cancelled = False
        self.respond: Respond = lambda context, number: iter(PIECES)

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateReply]:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        context.add_callback(self._ended)
        yield from self.respond(context, len(self.requests))

    def Info(self, request: pb.GenerationInfoRequest, context: grpc.ServicerContext) -> pb.GenerationInfoReply:
        return pb.GenerationInfoReply(model_name="fake", limits=pb.GenerationLimits(max_tokens=7))

    def _ended(self) -> None:
        self.was_cancelled = True


@pytest.fixture
def service() -> FakeGeneration:
    return FakeGeneration()


@pytest.fixture
def address(service: FakeGeneration) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_GenerationServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def generate(request: pytest.FixtureRequest, address: str) -> Callable[..., list[Generated]]:
    """All pieces of a text, from either client; what came before an error is in `found`."""

    def collect(prompt: Any = "x", found: list[Generated] | None = None, **options: Any) -> list[Generated]:
        pieces: list[Generated] = [] if found is None else found
        if not request.param:
            with Client(address, api_key="k") as client:
                for piece in client.generate(prompt, **options):
                    pieces.append(piece)
            return pieces

        async def scenario() -> None:
            async with AsyncClient(address, api_key="k") as client:
                async for piece in client.generate(prompt, **options):
                    pieces.append(piece)

        asyncio.run(scenario())
        return pieces

    return collect


Generate = Callable[..., list[Generated]]


def test_pieces_come_as_they_are_and_the_last_explains_itself(generate: Generate) -> None:
    first, last = generate()
    assert (first.text, first.token_ids, first.finished) == ("a", (1,), None)
    finished = last.finished
    assert (last.text, last.token_ids) == ("bc", (2, 3))
    assert finished is not None
    assert (finished.reason, finished.num_prompt_tokens, finished.num_new_tokens) == ("length", 2, 3)
    assert (finished.submodel, finished.granularity, finished.nats) == (Submodel((64, 64)), "XL", None)
    assert (finished.draft, finished.gamma, finished.limited_by, finished.slo_met) == ("S", 4, "backlog", True)
    assert (finished.acceptance_rate, finished.mean_acceptance_length) == (5 / 8, 3.5)
    assert finished.num_accepted_tokens_per_pos == (2, 2, 1)


def test_a_call_carries_its_key_and_its_absolute_deadline(generate: Generate, service: FakeGeneration) -> None:
    generate(timeout_s=20.0)
    (metadata,) = service.metadata
    assert metadata["authorization"] == "Bearer k"
    assert float(metadata["x-deadline-unix-ms"]) == pytest.approx(1000 * (time.time() + 20), abs=5_000)


def test_a_server_that_is_not_there_yet_is_asked_again(generate: Generate, service: FakeGeneration) -> None:
    def respond(context: grpc.ServicerContext, number: int) -> Iterator[pb.GenerateReply]:
        if number < 3:
            end(context, grpc.StatusCode.UNAVAILABLE)
        yield from PIECES

    service.respond = respond
    assert len(generate()) == 2
    assert len(service.requests) == 3


def test_a_text_that_has_begun_is_not_begun_again(generate: Generate, service: FakeGeneration) -> None:
    def respond(context: grpc.ServicerContext, number: int) -> Iterator[pb.GenerateReply]:
        yield PIECES[0]
        end(context, grpc.StatusCode.UNAVAILABLE)

    service.respond = respond
    found: list[Generated] = []
    with pytest.raises(ServerUnavailable):
        generate(found=found)
    assert [piece.text for piece in found] == ["a"]
    assert len(service.requests) == 1


def test_a_refusal_is_not_repeated_and_says_when_to_come_back(generate: Generate, service: FakeGeneration) -> None:
    def respond(context: grpc.ServicerContext, number: int) -> Iterator[pb.GenerateReply]:
        end(context, grpc.StatusCode.RESOURCE_EXHAUSTED, ("elastic-error", REFUSED))
        yield from ()

    service.respond = respond
    with pytest.raises(Overloaded) as raised:
        generate()
    assert (raised.value.retry_after_ms, len(service.requests)) == (12.5, 1)


REFUSED = '{"type": "Overloaded", "fields": ["full", 12.5]}'


def test_a_text_that_takes_too_long_is_given_up(generate: Generate, service: FakeGeneration) -> None:
    def respond(context: grpc.ServicerContext, number: int) -> Iterator[pb.GenerateReply]:
        yield PIECES[0]
        while context.is_active():
            time.sleep(0.01)

    service.respond = respond
    with pytest.raises(DeadlineExceeded):
        generate(timeout_s=-0.9)  # a second more is waited for the server's own words


def test_a_reader_that_leaves_ends_the_call(address: str, service: FakeGeneration) -> None:
    def respond(context: grpc.ServicerContext, number: int) -> Iterator[pb.GenerateReply]:
        while context.is_active():
            yield PIECES[0]
            time.sleep(0.01)

    service.respond = respond
    with Client(address) as client:
        stream = client.generate("x")
        next(stream)
        stream.close()
        until_s = time.monotonic() + 10
        while not service.was_cancelled and time.monotonic() < until_s:
            time.sleep(0.01)
    assert service.was_cancelled


def test_what_can_be_chosen_is_passed_on(address: str) -> None:
    async def ask() -> pb.GenerationInfoReply:
        async with AsyncClient(address) as client:
            return await client.generation_info()

    with Client(address) as client:
        assert client.generation_info() == asyncio.run(ask())
        assert client.generation_info().limits.max_tokens == 7


def test_what_is_left_out_is_not_sent() -> None:
    assert generate_request("x", {}) == pb.GenerateRequest(text="x", sampling=pb.Sampling(), slo=pb.TokenSlo())


def test_every_option_is_sent() -> None:
    request = generate_request(
        [1, 2],
        {
            "max_new_tokens": 3,
            "temperature": 0.5,
            "top_k": 4,
            "top_p": 0.9,
            "seed": 7,
            "stop": ["a"],
            "token_latency_slo_ms": 20.0,
            "max_nats": 3.0,
            "draft": "S",
        },
    )
    assert request == pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=[1, 2]),
        max_new_tokens=3,
        sampling=pb.Sampling(temperature=0.5, top_k=4, top_p=0.9, seed=7),
        stop=["a"],
        slo=pb.TokenSlo(token_latency_ms=20.0, max_nats=3.0),
        draft="S",
    )


def test_a_number_that_cannot_be_sent_is_refused_before_it_is() -> None:
    with pytest.raises(InvalidRequest, match="request"):
        generate_request([-1], {})
    with pytest.raises(InvalidRequest, match="request"):
        generate_request("x", {"max_new_tokens": -1})
