"""The whole server, as users start it: `elastic serve RUN` of a language model, HAProxy in front, real calls.

One server with an API key for all tests; it ends cleanly at the end.
"""

import asyncio
import threading
import time
import urllib.request
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import openai
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from elastic.client import AsyncClient, Client, Generated
from elastic.errors import DeadlineExceeded, InvalidRequest, Overloaded, SloInfeasible, Unauthenticated
from elastic.lm.checkpoint import load_matlm
from elastic.lm.generate import GenerationConfig
from elastic.lm.generate import Generator as TextGenerator
from elastic.serve.access.keys import create_key, editing
from elastic.serve.rollout.control import call, socket_path
from elastic.serve.telemetry.snapshot import Interval, Snapshot
from tests.serve.conftest import free_port, server_process
from tests.serve.generation.conftest import write_run

pytestmark = [pytest.mark.ray, pytest.mark.serve, pytest.mark.slow]

PROMPT = "the cat"
LONG = 2_000
MAX_SEQUENCES = 2

TextStream = Generator[Generated, None, None]


@dataclass(frozen=True, slots=True)
class Running:
    address: str
    http: str
    metrics: str
    key: str
    run: Path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("generation")
    run = write_run(folder / "tiny_lm")
    entry, key = create_key("tests")
    with editing(folder / "keys.json") as entries:
        entries.append(entry)
    http, metrics = free_port(), free_port()
    flags = ["--http-port", str(http), "--metrics-port", str(metrics), "--api-keys", str(folder / "keys.json")]
    flags += ["--max-sequences", str(MAX_SEQUENCES)]
    with server_process(run, folder, *flags) as server:
        yield Running(server.address, f"http://127.0.0.1:{http}", f"http://127.0.0.1:{metrics}/metrics", key, run)
        server.stop()


@pytest.fixture
def client(running: Running) -> Iterator[Client]:
    with Client(running.address, api_key=running.key) as client:
        yield client


@pytest.fixture
def completions(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.http}/v1", api_key=running.key, max_retries=0) as client:
        yield client


def own(run: Path, count: int) -> tuple[str, list[int]]:
    """What the model generates without a server, greedily."""
    decoder, _, tokenizer = load_matlm(run)
    prompt = tokenizer.encode(PROMPT).ids
    steps = TextGenerator(decoder).generate([prompt], GenerationConfig(max_new_tokens=count))
    tokens = [token for step in steps for token in step.tokens[0]]
    return tokenizer.decode(tokens), tokens


def tokens_of(pieces: list[Generated]) -> list[int]:
    return [token for piece in pieces for token in piece.token_ids]


def snapshot(running: Running) -> Snapshot:
    with urllib.request.urlopen(running.metrics, timeout=10) as page:
        return Snapshot.parse(page.read().decode(), time.time())


def take_all_places(client: Client) -> list[TextStream]:
    """As many calls under way as the server has places; until then, one after another is refused."""
    deadline_s = time.monotonic() + 20
    while True:
        streams = [client.generate(PROMPT, max_new_tokens=LONG) for _ in range(MAX_SEQUENCES)]
        try:
            for stream in streams:
                next(stream)
            return streams
        except Overloaded:
            assert time.monotonic() < deadline_s
            close(streams)
            time.sleep(0.05)


def close(streams: list[TextStream]) -> None:
    """Give up calls; the server hears of it a little later."""
    for stream in streams:
        stream.close()


def wait_for_a_place(client: Client) -> None:
    """Until a call is answered to its end, whose place then is free."""
    deadline_s = time.monotonic() + 20
    while True:
        try:
            list(client.generate(PROMPT, max_new_tokens=1))
            return
        except Overloaded:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


def test_a_stream_is_token_for_token_what_the_model_generates(running: Running, client: Client) -> None:
    pieces = list(client.generate(PROMPT, max_new_tokens=64))
    _, tokens = own(running.run, 64)
    assert tokens_of(pieces) == tokens
    assert len(pieces) > 1
    finished = pieces[-1].finished
    assert finished is not None
    assert (finished.granularity, finished.reason, finished.num_new_tokens) == ("XL", "length", 64)
    assert (finished.nats, finished.limited_by, finished.slo_met) == (3.0, "none", True)
    assert 0 < finished.token_ms < finished.total_ms


def test_two_streams_at_once_are_what_they_are_alone(running: Running) -> None:
    async def both() -> list[list[Generated]]:
        async def one(client: AsyncClient, draft: str) -> list[Generated]:
            return [piece async for piece in client.generate(PROMPT, max_new_tokens=200, draft=draft)]

        async with AsyncClient(running.address, api_key=running.key) as client:
            return await asyncio.gather(one(client, "off"), one(client, "M"))

    _, tokens = own(running.run, 200)
    found = asyncio.run(both())
    assert [tokens_of(pieces) for pieces in found] == [tokens, tokens]
    assert {pieces[-1].finished.num_sequences for pieces in found if pieces[-1].finished} == {1, 2}


def test_a_cancelled_call_frees_its_place(client: Client) -> None:
    streams = take_all_places(client)
    with pytest.raises(Overloaded, match="hold all places") as refused:
        next(client.generate(PROMPT))
    assert refused.value.retry_after_ms > 0
    close(streams)
    close(take_all_places(client))
    wait_for_a_place(client)


def test_a_closed_http_stream_frees_its_place_too(completions: openai.OpenAI, client: Client) -> None:
    for _ in range(MAX_SEQUENCES):
        stream = completions.completions.create(model="any", prompt=PROMPT, max_tokens=LONG, stream=True)
        next(iter(stream))
        stream.close()
    close(take_all_places(client))
    wait_for_a_place(client)


def test_a_deadline_ends_a_text_with_what_came_before_it(client: Client) -> None:
    found: list[Generated] = []
    with pytest.raises(DeadlineExceeded):
        for piece in client.generate(PROMPT, max_new_tokens=LONG, timeout_s=0.4):
            found.append(piece)
    assert 0 < len(tokens_of(found)) < LONG
    assert all(piece.finished is None for piece in found)


def test_what_cannot_be_done_is_told_apart(client: Client) -> None:
    for options, words in (
        ({"max_new_tokens": 5_000}, "max_new_tokens: is 5000; the model's context of 2048 has room for"),
        ({"top_p": 2.0}, "sampling.top_p: 2.0 must be"),
        ({"draft": "huge"}, "draft: 'huge' is not one of auto, off, S, M, L, XL"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            next(client.generate(PROMPT, **options))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="is 2048 tokens long, which leaves no room"):
        next(client.generate([1] * 2_048))
    with pytest.raises(SloInfeasible, match=r"token_latency_ms=0\.001"):
        next(client.generate(PROMPT, token_latency_slo_ms=0.001))
    with pytest.raises(SloInfeasible, match="max_nats=1"):
        next(client.generate(PROMPT, max_nats=1.0))


def test_only_who_has_a_key_gets_text(running: Running) -> None:
    with Client(running.address, api_key="elastic_wrong") as stranger, pytest.raises(Unauthenticated):
        next(stranger.generate(PROMPT))
    url = f"{running.http}/v1"
    with openai.OpenAI(base_url=url, api_key="none") as client, pytest.raises(openai.AuthenticationError):
        client.completions.create(model="any", prompt=PROMPT)


def test_openais_client_gets_the_same_text_whole_and_streamed(running: Running, completions: openai.OpenAI) -> None:
    text, _ = own(running.run, 40)
    whole = completions.completions.create(model="any", prompt=PROMPT, max_tokens=40, temperature=0)
    assert whole.choices[0].text == text.rstrip("\ufffd")
    assert (whole.choices[0].finish_reason, whole.model) == ("length", "tiny_lm")
    stream = completions.completions.create(
        model="any",
        prompt=PROMPT,
        max_tokens=40,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert len(chunks) > 3
    assert chunks[-1].usage == whole.usage
    word = text[4:7]
    stopped = completions.completions.create(model="any", prompt=PROMPT, max_tokens=40, temperature=0, stop=word)
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (text[: text.find(word)], "stop")


def test_a_seed_draws_the_same_again(completions: openai.OpenAI) -> None:
    texts = {
        completions.completions.create(model="any", prompt=PROMPT, max_tokens=30, seed=5, top_p=0.9).choices[0].text
        for _ in range(2)
    }
    assert len(texts) == 1


def test_health_reflection_models_and_limits_are_there(
    running: Running, client: Client, completions: openai.OpenAI
) -> None:
    with grpc.insecure_channel(running.address) as channel:
        health = HealthStub(channel)
        for service in ("", "elastic.v1.GenerationService"):
            assert health.Check(HealthCheckRequest(service=service)).status == HealthCheckResponse.SERVING
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert {"elastic.v1.GenerationService", "grpc.health.v1.Health"} <= set(services)
    info = client.generation_info()
    assert (info.model_name, info.limits.max_tokens, info.limits.max_sequences) == ("tiny_lm", 2_048, MAX_SEQUENCES)
    (model,) = completions.models.list()
    assert model.id == "tiny_lm"


def test_what_was_generated_is_counted(running: Running, client: Client) -> None:
    before = snapshot(running)
    pieces = list(client.generate(PROMPT, max_new_tokens=20, draft="S"))
    shown = Interval(before, snapshot(running))
    assert shown.total("elastic_generation_tokens_total") == 20
    assert shown.total("elastic_requests_total", outcome="met") == 1
    assert shown.total("elastic_time_to_first_token_seconds_count") == 1
    finished = pieces[-1].finished
    assert finished is not None
    assert shown.total("elastic_spec_decode_num_draft_tokens_total") == finished.num_draft_tokens


def test_another_run_takes_its_place_while_a_text_goes_on(running: Running, client: Client, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other_lm", seed=1)
    _, tokens = own(running.run, 400)
    stream = client.generate(PROMPT, max_new_tokens=400)
    pieces = [next(stream)]
    request = {"verb": "deploy", "run": str(other), "allow_narrower": False}
    control = socket_path(int(running.address.rpartition(":")[2]))
    deploying = threading.Thread(target=lambda: deployed.append(call(control, request, 120)))
    deployed: list[dict[str, object]] = []
    deploying.start()
    pieces += stream
    deploying.join()
    assert tokens_of(pieces) == tokens
    assert deployed[0]["name"] == "other_lm"
    assert tokens_of(list(client.generate(PROMPT, max_new_tokens=20))) == own(other, 20)[1]
