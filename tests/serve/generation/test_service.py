"""The service without Ray: what it answers is what the model generates by itself."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic.errors import DeadlineExceeded, InvalidRequest, RateLimited, ServerUnavailable, Unauthenticated
from elastic.lm.checkpoint import load_matlm
from elastic.lm.generate import GenerationConfig, Generator
from elastic.lm.sampling import Sampling
from elastic.serve.access.keys import create_key, editing
from elastic.serve.config import ServeConfig
from elastic.serve.generation.observer import GenerationObserver, GenerationOutcome
from elastic.serve.generation.service import GenerationService
from elastic.submodel import Submodel
from tests.serve.generation.conftest import CONFIG, write_run

PROMPT = "the cat"


class Caller:
    def __init__(self, **metadata: str) -> None:
        self._metadata = metadata

    def invocation_metadata(self) -> Iterable[tuple[str, str]]:
        return [(name.replace("_", "-"), value) for name, value in self._metadata.items()]

    def peer(self) -> str:
        return "unix:test"


class Heard(GenerationObserver):
    def __init__(self) -> None:
        self.outcomes: list[GenerationOutcome] = []

    def request_finished(self, outcome: GenerationOutcome) -> None:
        self.outcomes.append(outcome)


def ask(**fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(**({"text": PROMPT, "max_new_tokens": 24} | fields))  # type: ignore[arg-type]


async def replies_of(service: GenerationService, request: pb.GenerateRequest, caller: Caller | None = None) -> list:
    return [reply async for reply in service.generate(request, caller)]


def answer(service: GenerationService, request: pb.GenerateRequest) -> list[pb.GenerateReply]:
    return asyncio.run(replies_of(service, request))


def tokens_of(replies: list[pb.GenerateReply]) -> list[int]:
    return [token for reply in replies for token in reply.token_ids]


def own(run: Path, target: Submodel, sampling: Sampling | None = None, seed: int = 0, count: int = 24) -> list[int]:
    """What the model generates without a server."""
    decoder, manifest, tokenizer = load_matlm(run)
    config = GenerationConfig(
        max_new_tokens=count,
        sampling=sampling or Sampling(),
        seed=seed,
        target=target,
        eos=manifest.eos_token_ids,
    )
    steps = Generator(decoder).generate([tokenizer.encode(PROMPT).ids], config)
    return [token for step in steps for token in step.tokens[0]]


@pytest.mark.parametrize("draft", ["off", "S", "L"])
def test_a_greedy_answer_is_the_models_own_whatever_drafts(
    service: GenerationService, lm_run: Path, draft: str
) -> None:
    replies = answer(service, ask(draft=draft))
    assert replies[-1].finish.explanation.granularity == "XL"
    assert tokens_of(replies) == own(lm_run, CONFIG.space.full)


def test_a_seed_draws_what_it_draws_without_a_server(service: GenerationService, lm_run: Path) -> None:
    sampling = pb.Sampling(temperature=0.9, top_k=50, top_p=0.95, seed=7)
    found = tokens_of(answer(service, ask(sampling=sampling)))
    assert found == tokens_of(answer(service, ask(sampling=sampling)))
    assert found == own(lm_run, CONFIG.space.full, Sampling(temperature=0.9, top_k=50, top_p=0.95), seed=7)


def test_the_text_is_that_of_the_tokens_and_only_the_last_reply_ends_it(service: GenerationService) -> None:
    replies = answer(service, ask())
    whole = service.served.reading.tokenizer.decode(tokens_of(replies))
    assert "".join(reply.text for reply in replies).strip("\ufffd") in whole
    assert [reply.HasField("finish") for reply in replies] == [False] * (len(replies) - 1) + [True]
    finish = replies[-1].finish
    assert (finish.reason, finish.usage.num_new_tokens) == (pb.FINISH_REASON_LENGTH, 24)
    assert finish.explanation.token_ms > 0 and finish.explanation.first_token_ms > 0
    assert finish.explanation.nats == 3.0


def test_sequences_side_by_side_get_what_they_get_alone(service: GenerationService) -> None:
    requests = [ask(max_new_tokens=count, draft=draft) for count, draft in ((24, "off"), (20, "S"), (24, "auto"))]
    alone = [tokens_of(answer(service, request)) for request in requests]

    async def together() -> list[list[pb.GenerateReply]]:
        return await asyncio.gather(*(replies_of(service, request) for request in requests))

    found = asyncio.run(together())
    assert [tokens_of(replies) for replies in found] == alone
    assert {replies[-1].finish.explanation.num_sequences for replies in found} == {1, 2, 3}


def test_a_stop_string_ends_the_text_the_tokens_and_the_sequence(service: GenerationService) -> None:
    text = "".join(reply.text for reply in answer(service, ask(draft="off")))
    word = text[5:8]
    replies = answer(service, ask(stop=[word], draft="off"))
    assert "".join(reply.text for reply in replies) == text[: text.find(word)]
    finish = replies[-1].finish
    assert finish.reason == pb.FINISH_REASON_STOP
    assert finish.usage.num_new_tokens == len(tokens_of(replies)) < 24


def test_the_token_that_ends_a_text_is_counted_and_has_no_text(lm_run: Path, tmp_path: Path) -> None:
    third = own(lm_run, CONFIG.space.full)[2]
    service = GenerationService.load(ServeConfig(run=write_run(tmp_path / "ends", eos=(third,))))
    replies = answer(service, ask())
    assert replies[-1].finish.reason == pb.FINISH_REASON_STOP
    assert tokens_of(replies)[-1] == third
    service.close()


def test_a_malformed_request_is_refused_before_it_has_a_place(service: GenerationService) -> None:
    with pytest.raises(InvalidRequest, match="max_new_tokens: is 5000"):
        answer(service, ask(max_new_tokens=5_000))
    assert service.num_calls == service.served.engine.num_running == 0


def test_a_reader_that_leaves_frees_its_place_and_is_counted_as_that(lm_run: Path) -> None:
    heard = Heard()
    service = GenerationService.load(ServeConfig(run=lm_run), [heard])

    async def leave() -> None:
        async with aclosing(service.generate(ask(max_new_tokens=2_000), None)) as replies:
            await anext(replies)
            assert service.num_calls == service.served.engine.num_running == 1
        assert service.num_calls == service.served.engine.num_running == 0

    asyncio.run(leave())
    assert [outcome.name for outcome in heard.outcomes] == ["cancelled"]
    service.close()


def test_the_deadline_of_the_caller_ends_a_text_behind_what_was_sent(service: GenerationService) -> None:
    soon = f"{1000 * time.time() + 150:.3f}"
    found: list[pb.GenerateReply] = []

    async def read() -> None:
        async for reply in service.generate(ask(max_new_tokens=2_000), Caller(x_deadline_unix_ms=soon)):
            found.append(reply)

    with pytest.raises(DeadlineExceeded):
        asyncio.run(read())
    assert 0 < len(tokens_of(found)) < 2_000


def test_who_has_no_key_gets_no_text_and_who_has_one_is_held_to_it(lm_run: Path, tmp_path: Path) -> None:
    entry, secret = create_key("one", concurrency=1)
    with editing(tmp_path / "keys.json") as entries:
        entries.append(entry)
    heard = Heard()
    service = GenerationService.load(ServeConfig(run=lm_run, api_keys=tmp_path / "keys.json"), [heard])
    known = Caller(authorization=f"Bearer {secret}")

    async def calls() -> None:
        with pytest.raises(Unauthenticated):
            await replies_of(service, ask(), Caller())
        with pytest.raises(Unauthenticated):
            service.info(Caller())
        async with aclosing(service.generate(ask(), known)) as replies:
            await anext(replies)
            with pytest.raises(RateLimited):
                await replies_of(service, ask(), known)
        await replies_of(service, ask(), known)

    asyncio.run(calls())
    assert [(outcome.name, outcome.key) for outcome in heard.outcomes] == [
        ("unauthenticated", None),
        ("rate_limited", None),
        ("cancelled", "one"),
        ("met", "one"),
    ]
    service.close()


def test_while_draining_what_runs_ends_and_nothing_new_begins(lm_run: Path) -> None:
    service = GenerationService.load(ServeConfig(run=lm_run))

    async def drain() -> None:
        replies = service.generate(ask(), None)
        await anext(replies)
        draining = asyncio.ensure_future(service.drain(30.0))
        await asyncio.sleep(0)
        with pytest.raises(ServerUnavailable, match="shutting down"):
            await replies_of(service, ask())
        rest = [reply async for reply in replies]
        assert rest[-1].HasField("finish")
        assert await draining == 0

    asyncio.run(drain())
    service.close()


def test_a_text_ends_on_the_model_it_began_with(lm_run: Path, tmp_path: Path) -> None:
    config = ServeConfig(run=lm_run)
    service = GenerationService.load(config)
    other = GenerationService.load(replace(config, run=write_run(tmp_path / "other", seed=1))).served
    old = service.served
    alone = tokens_of(answer(service, ask(max_new_tokens=200)))

    async def swap() -> list[pb.GenerateReply]:
        replies: AsyncIterator[pb.GenerateReply] = service.generate(ask(max_new_tokens=200), None)
        found = [await anext(replies)]
        service.swap(other)
        return found + [reply async for reply in replies]

    found = asyncio.run(swap())
    assert tokens_of(found) == alone
    assert found[-1].finish.explanation.model_version == old.version != other.version
    assert answer(service, ask())[-1].finish.explanation.model_version == other.version
    service.close()


def test_the_model_says_what_can_be_chosen_and_its_limits(service: GenerationService) -> None:
    info = service.info()
    assert [item.granularity for item in info.submodels][-1] == "XL"
    assert all(item.predicted_token_ms > 0 for item in info.submodels)
    assert info.submodels[-1].nats == 3.0
    assert (info.model_name, info.limits.max_tokens, info.limits.max_sequences) == ("tiny_lm", 2048, 4)
    assert info.limits.vocab_size == 270
