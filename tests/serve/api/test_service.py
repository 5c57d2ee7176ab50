import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.checkpoint import load_model
from elastic.data.decode import decode
from elastic.errors import InvalidRequest, RateLimited, ServerUnavailable, SloInfeasible, Unauthenticated
from elastic.model.preprocess import CANVAS_SCALE, to_model_input
from elastic.serve.access.keys import create_key, editing
from elastic.serve.api.service import EmbeddingService
from elastic.serve.config import ServeConfig
from elastic.serve.observer import Observer, Outcome
from elastic.serve.payloads.inputs import Content
from elastic.serve.resident import ResidentModel
from elastic.serve.served import Served
from tests.serve.conftest import service_of

RELAXED = pb.Slo(latency_ms=60_000.0)


class QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service(tiny_model: ResidentModel, tiny_run: Path) -> Iterator[EmbeddingService]:
    service = service_of(tiny_model, ServeConfig(run=tiny_run))
    yield service
    service.close()


def embed(service: EmbeddingService, request: pb.EmbedRequest) -> pb.EmbedReply:
    return asyncio.run(service.embed(request, None))


def test_a_served_embedding_equals_the_models_own(tiny_run: Path, png: bytes) -> None:
    service = EmbeddingService.load(ServeConfig(run=tiny_run))
    reply = embed(service, pb.EmbedRequest(inputs=[pb.Input(image=png)], slo=RELAXED))
    encoder, manifest, _ = load_model(tiny_run)
    canvas = decode(png, CANVAS_SCALE * manifest.preprocess.image_size)
    image = to_model_input(torch.from_numpy(canvas)[None], manifest.preprocess)
    submodel = encoder.space.parse(reply.embeddings[0].explanation.submodel)
    own = encoder.encode_images(image, submodel, 32).detach().numpy()[0]
    assert np.frombuffer(reply.embeddings[0].values_f32, "<f4") == pytest.approx(own, abs=1e-5)


def test_images_and_texts_of_one_request_are_answered_in_order(service: EmbeddingService, png: bytes) -> None:
    inputs = [pb.Input(text="a cat"), pb.Input(image=png), pb.Input(text="a red house")]
    reply = embed(service, pb.EmbedRequest(inputs=inputs, slo=RELAXED))
    kinds = [item.explanation.modality for item in reply.embeddings]
    assert kinds == [pb.MODALITY_TEXT, pb.MODALITY_IMAGE, pb.MODALITY_TEXT]
    assert reply.slo_met and reply.slack_ms > 0


def test_a_width_is_cut_and_normalised_again(service: EmbeddingService, png: bytes) -> None:
    slo = pb.Slo(latency_ms=60_000.0, embed_dim=8)
    full = embed(service, pb.EmbedRequest(inputs=[pb.Input(image=png)], slo=RELAXED)).embeddings[0]
    cut = embed(service, pb.EmbedRequest(inputs=[pb.Input(image=png)], slo=slo)).embeddings[0]
    head = np.frombuffer(full.values_f32, "<f4")[:8]
    assert np.frombuffer(cut.values_f32, "<f4") == pytest.approx(head / np.linalg.norm(head), abs=1e-6)


def test_several_outputs_come_from_one_forward_pass(service: EmbeddingService, png: bytes) -> None:
    outputs = [pb.Output(embed_dim=8, dtype=pb.DTYPE_UBINARY), pb.Output(embed_dim=32), pb.Output(embed_dim=8)]
    inputs = [pb.Input(image=png), pb.Input(text="a cat")]
    reply = embed(service, pb.EmbedRequest(inputs=inputs, slo=RELAXED, outputs=outputs))
    for item in reply.embeddings:
        assert item.values_f32 == b"" and item.explanation.embed_dim == 32
        bits, full, head = (np.frombuffer(vector.values, np.uint8) for vector in item.vectors)
        full, head = full.view("<f4"), head.view("<f4")
        assert head == pytest.approx(full[:8] / np.linalg.norm(full[:8]), abs=1e-6)
        assert np.array_equal(bits, np.packbits(head > 0))


def test_the_least_quality_is_asked_of_the_widest_output(service: EmbeddingService, png: bytes) -> None:
    slo = pb.Slo(latency_ms=60_000.0, min_quality=0.25)  # width 8 reaches 0.15 at most, 16 reaches 0.3
    inputs = [pb.Input(image=png)]
    narrow = pb.EmbedRequest(inputs=inputs, slo=slo, outputs=[pb.Output(embed_dim=8)])
    with pytest.raises(SloInfeasible, match="min_quality"):
        embed(service, narrow)
    narrow.outputs.add(embed_dim=16)
    assert embed(service, narrow).embeddings[0].explanation.granularity == "XL"


def test_an_output_of_an_untrained_width_is_refused(service: EmbeddingService) -> None:
    with pytest.raises(InvalidRequest, match=r"outputs\[0\].embed_dim: 9 .* \[8, 16, 32\]"):
        embed(service, pb.EmbedRequest(inputs=[pb.Input(text="a")], outputs=[pb.Output(embed_dim=9)]))


def test_tokens_are_counted_without_padding(service: EmbeddingService, png: bytes) -> None:
    inputs = [pb.Input(text="a"), pb.Input(text="a red house"), pb.Input(text="a " * 100), pb.Input(image=png)]
    reply = embed(service, pb.EmbedRequest(inputs=inputs, slo=RELAXED))
    short, longer, cut, image = (item.explanation.num_tokens for item in reply.embeddings)
    assert 0 < short < longer < 8
    assert cut == 8  # the model's limit
    assert image == 2 * 2 + 1  # patches and the class token


def test_an_image_of_a_listed_host_is_embedded_like_its_bytes(
    tiny_model: ResidentModel, tiny_run: Path, png: bytes, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(png)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietFiles, directory=str(tmp_path))) as files:
        Thread(target=files.serve_forever, args=(0.01,)).start()
        host = f"localhost:{files.server_address[1]}"
        allowed = (host, "127.0.0.0/8", "::1/128")
        service = service_of(tiny_model, ServeConfig(run=tiny_run, image_url_allow=allowed))
        inputs = [pb.Input(image_url=f"http://{host}/a.png"), pb.Input(image=png)]
        first, second = embed(service, pb.EmbedRequest(inputs=inputs, slo=RELAXED)).embeddings
        files.shutdown()
    assert np.frombuffer(first.values_f32, "<f4") == pytest.approx(np.frombuffer(second.values_f32, "<f4"), abs=1e-6)


def test_urls_are_refused_unless_hosts_are_listed(service: EmbeddingService) -> None:
    request = pb.EmbedRequest(inputs=[pb.Input(image_url="http://127.0.0.1/a.png")], slo=RELAXED)
    with pytest.raises(InvalidRequest, match=r"inputs\[0\].image_url: this server reads no URLs"):
        embed(service, request)


def test_a_stream_answers_every_request_and_survives_bad_ones(service: EmbeddingService, png: bytes) -> None:
    contents = [pb.Input(image=png), pb.Input(image=b"junk"), pb.Input(text="a cat"), pb.Input()]

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        for id, content in enumerate(contents):
            yield pb.EmbedStreamRequest(id=id, request=pb.EmbedRequest(inputs=[content], slo=RELAXED))

    async def collect() -> dict[int, pb.EmbedStreamReply]:
        return {reply.id: reply async for reply in service.embed_stream(requests())}

    replies = asyncio.run(collect())
    assert [replies[id].WhichOneof("outcome") for id in range(4)] == ["reply", "failure", "reply", "failure"]
    assert replies[1].failure.code == 3  # INVALID_ARGUMENT
    assert "inputs[0]" in replies[3].failure.message


def test_a_stream_reads_no_more_than_its_share(tiny_model: ResidentModel, tiny_run: Path) -> None:
    service = service_of(tiny_model, ServeConfig(run=tiny_run, max_stream_requests=2))
    num_read = 0

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        nonlocal num_read
        for id in range(50):
            num_read += 1
            yield pb.EmbedStreamRequest(
                id=id, request=pb.EmbedRequest(inputs=[pb.Input(text="a cat")], slo=pb.Slo(latency_ms=60_000.0))
            )

    async def collect() -> int:
        num_answered = most_ahead = 0
        async for _ in service.embed_stream(requests()):
            num_answered += 1
            most_ahead = max(most_ahead, num_read - num_answered)
        assert num_answered == 50
        return most_ahead

    # Two at work, one read and waiting for a place, and what was answered but not yet taken from the stream.
    assert asyncio.run(collect()) < 10


def test_a_stream_whose_source_breaks_ends_with_that_error(service: EmbeddingService) -> None:
    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        yield pb.EmbedStreamRequest(id=1, request=pb.EmbedRequest(inputs=[pb.Input(text="a cat")], slo=RELAXED))
        raise ConnectionError("client left")

    async def collect() -> None:
        async for _ in service.embed_stream(requests()):
            pass

    with pytest.raises(ConnectionError):
        asyncio.run(collect())


def test_only_the_first_of_several_calls_has_the_event_loop_to_itself(
    service: EmbeddingService, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    really = service.served.preparation.prepare

    async def noted(contents: Sequence[Content], limit_s: float, *, at_rest: bool) -> list[object]:
        told.append(at_rest)
        return await really(contents, limit_s, at_rest=at_rest)

    monkeypatch.setattr(service.served.preparation, "prepare", noted)
    images = pb.EmbedRequest(inputs=[pb.Input(image=png)] * 2, slo=RELAXED)  # two, so that their threads are waited for

    async def scenario() -> None:
        await asyncio.gather(*(service.embed(images, None) for _ in range(3)))
        await service.embed(images, None)

    asyncio.run(scenario())
    assert told == [True, False, False, True]


def test_info_lists_choices_and_limits(service: EmbeddingService, tiny_run: Path) -> None:
    info = service.info()
    images = [item for item in info.submodels if item.modality == pb.MODALITY_IMAGE]
    assert [item.granularity for item in images] == ["S", "M", "L", "XL"]
    assert list(images[-1].quality) == pytest.approx([0.15, 0.3, 0.6])
    assert list(info.embed_dims) == [8, 16, 32]
    assert (info.model_name, info.limits.max_items_per_call) == (tiny_run.name, 64)
    assert "PNG" in info.image_formats


def test_a_bad_request_does_not_reach_the_model(service: EmbeddingService) -> None:
    with pytest.raises(InvalidRequest, match="8, 16, 32"):
        embed(service, pb.EmbedRequest(inputs=[pb.Input(text="a")], slo=pb.Slo(latency_ms=60_000.0, embed_dim=9)))


def test_nothing_waits_in_a_service_that_was_not_asked(service: EmbeddingService) -> None:
    assert service.num_waiting == 0


def test_the_canary_passes_and_closing_stops_it(service: EmbeddingService) -> None:
    assert asyncio.run(service.canary())
    service.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        asyncio.run(service.canary())


def test_a_call_ends_on_the_model_it_began_with_and_the_next_gets_the_new_one(
    service: EmbeddingService, other_model: ResidentModel, other_run: Path, png: bytes
) -> None:
    old, new = service.served, Served.of(other_model, ServeConfig(run=other_run), Observer())
    request = pb.EmbedRequest(inputs=[pb.Input(image=png), pb.Input(text="a cat")], slo=RELAXED)

    async def call_and_swap() -> tuple[pb.EmbedReply, pb.EmbedReply]:
        first = asyncio.create_task(service.embed(request, None))
        await asyncio.sleep(0)
        assert old.num_calls == 1
        service.swap(new)
        return await first, await service.embed(request, None)

    first, second = asyncio.run(call_and_swap())
    assert (first.model_version, second.model_version) == (old.version, new.version)
    assert old.version != new.version
    assert first.embeddings[0].values_f32 != second.embeddings[0].values_f32


def test_info_and_the_canary_are_those_of_the_new_model(
    service: EmbeddingService, other_model: ResidentModel, other_run: Path
) -> None:
    new = Served.of(other_model, ServeConfig(run=other_run), Observer())
    service.swap(new)
    assert (service.info().model_name, service.info().model_version) == ("other", new.version)
    assert asyncio.run(service.canary())


def test_a_drain_lets_what_was_accepted_end_and_refuses_what_comes_later(service: EmbeddingService, png: bytes) -> None:
    request = pb.EmbedRequest(inputs=[pb.Input(image=png)], slo=RELAXED)

    async def drain() -> tuple[pb.EmbedReply, int]:
        accepted = asyncio.create_task(service.embed(request, None))
        await asyncio.sleep(0)
        draining = asyncio.create_task(service.drain(60.0))
        await asyncio.sleep(0)
        with pytest.raises(ServerUnavailable, match="shutting down"):
            await service.embed(request, None)
        return await accepted, await draining

    reply, num_left = asyncio.run(drain())
    assert len(reply.embeddings) == 1 and num_left == 0


def test_a_drain_says_how_many_calls_did_not_end_in_time(service: EmbeddingService) -> None:
    async def drain() -> int:
        stuck = asyncio.create_task(stuck_call(service))
        await asyncio.sleep(0)
        num_left = await service.drain(0.01)
        stuck.cancel()
        return num_left

    assert asyncio.run(drain()) == 1


async def stuck_call(service: EmbeddingService) -> None:
    with service._call():
        await asyncio.Event().wait()


def test_while_the_model_is_not_sound_nobody_waits_for_it(service: EmbeddingService, png: bytes) -> None:
    request = pb.EmbedRequest(inputs=[pb.Input(image=png)], slo=RELAXED)

    async def fail_and_recover() -> pb.EmbedReply:
        waiting = asyncio.create_task(service.embed(request, None))
        while not service.served.engine._pending:
            await asyncio.sleep(0)
        service.set_sound(False)
        for call in (waiting, service.embed(request, None)):
            with pytest.raises(ServerUnavailable, match="does not answer as it should"):
                await call
        service.set_sound(True)
        return await service.embed(request, None)

    assert len(asyncio.run(fail_and_recover()).embeddings) == 1


class FakeCaller:
    """What Ray hands on of a call."""

    def __init__(self, secret: str | None) -> None:
        self.secret = secret

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [] if self.secret is None else [("authorization", f"Bearer {self.secret}")]

    def peer(self) -> str:
        return "ipv4:127.0.0.1:40000"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def secret(key_file: Path) -> str:
    """A key for one request now, and the next in a day."""
    entry, secret = create_key("mobile", rate=1e-5, burst=1)
    with editing(key_file) as entries:
        entries.append(entry)
    return secret


@pytest.fixture
def guarded(tiny_model: ResidentModel, tiny_run: Path, key_file: Path, secret: str) -> EmbeddingService:
    return service_of(tiny_model, ServeConfig(run=tiny_run, api_keys=key_file))


CAT = pb.EmbedRequest(inputs=[pb.Input(text="a cat")], slo=RELAXED)


def test_observers_hear_which_key_a_request_was_sent_with(
    tiny_model: ResidentModel, tiny_run: Path, key_file: Path, secret: str
) -> None:
    class Keys(Observer):
        def __init__(self) -> None:
            self.heard: list[str | None] = []

        def request_finished(self, outcome: Outcome) -> None:
            self.heard.append(outcome.key)

    keys = Keys()
    service = service_of(tiny_model, ServeConfig(run=tiny_run, api_keys=key_file), [keys])
    asyncio.run(service.embed(CAT, FakeCaller(secret)))
    with pytest.raises(Unauthenticated):
        asyncio.run(service.embed(CAT, FakeCaller(None)))
    assert keys.heard == ["mobile", None]


def test_every_rpc_asks_for_the_key(guarded: EmbeddingService) -> None:
    stranger = FakeCaller(None)

    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        yield pb.EmbedStreamRequest(id=1, request=CAT)

    async def stream() -> None:
        async for _ in guarded.embed_stream(requests(), stranger):
            pass

    with pytest.raises(Unauthenticated):
        asyncio.run(guarded.embed(CAT, stranger))
    with pytest.raises(Unauthenticated):
        asyncio.run(stream())
    with pytest.raises(Unauthenticated):
        guarded.info(stranger)


def test_a_call_above_the_rate_is_refused_before_its_inputs_are_read(guarded: EmbeddingService, secret: str) -> None:
    caller = FakeCaller(secret)
    assert asyncio.run(guarded.embed(CAT, caller)).embeddings
    with pytest.raises(RateLimited):
        asyncio.run(guarded.embed(pb.EmbedRequest(), caller))


def test_every_message_of_a_stream_counts(guarded: EmbeddingService, secret: str) -> None:
    async def requests() -> AsyncIterator[pb.EmbedStreamRequest]:
        for id in range(3):
            yield pb.EmbedStreamRequest(id=id, request=CAT)

    async def collect() -> list[pb.EmbedStreamReply]:
        return [reply async for reply in guarded.embed_stream(requests(), FakeCaller(secret))]

    replies = asyncio.run(collect())
    assert sorted(reply.WhichOneof("outcome") for reply in replies) == ["failure", "failure", "reply"]
    assert {reply.failure.code for reply in replies} - {0} == {8}  # RESOURCE_EXHAUSTED
    assert any("RateLimited" in reply.failure.error_json for reply in replies)
