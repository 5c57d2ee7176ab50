from math import inf, nan

import pytest
from tokenizers import Tokenizer

from elastic._pb.elastic.v1 import embedding_pb2 as common
from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic.errors import InvalidRequest, RequestTooLarge
from elastic.lm.generate import Statistics
from elastic.lm.sampling import Sampling
from elastic.serve.generation.choice import Choice, Option, TokenSlo
from elastic.serve.generation.engine import Running
from elastic.serve.generation.messages import Reading, drafts_message, finish_message
from elastic.serve.policy import Limit
from elastic.submodel import Space, Submodel
from tests.serve.generation.conftest import Written, a_job, a_step

SPACE = Space(2, (8, 16, 32, 64), (32,))


@pytest.fixture(scope="module")
def reading(tokenizer: Tokenizer) -> Reading:
    return Reading(tokenizer, SPACE, vocab_size=270, max_tokens=32, max_text_chars=100)


def ids(*tokens: int) -> pb.TokenIds:
    return pb.TokenIds(ids=tokens)


def test_a_text_and_its_tokens_are_the_same_prompt(reading: Reading, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("the cat").ids
    text = reading.job(pb.GenerateRequest(text="the cat"), 5.0)
    assert text.prompt == reading.job(pb.GenerateRequest(token_ids=ids(*tokens)), 5.0).prompt == tuple(tokens)
    assert (text.arrived_ms, text.deadline_ms) == (5.0, inf)
    assert reading.job(pb.GenerateRequest(text="the cat"), 5.0, 20.0).deadline_ms == 25.0


def test_what_is_left_out_is_greedy_without_an_objective_and_fills_the_context(reading: Reading) -> None:
    job = reading.job(pb.GenerateRequest(token_ids=ids(1, 2)), 0.0)
    assert (job.max_new_tokens, job.sampling, job.slo, job.stop) == (30, Sampling(), TokenSlo(), ())
    assert job.draft == SPACE.smallest


def test_everything_that_is_set_is_read(reading: Reading) -> None:
    request = pb.GenerateRequest(
        token_ids=ids(1),
        max_new_tokens=3,
        sampling=pb.Sampling(temperature=0.5, top_k=7, top_p=0.9, seed=11),
        stop=["a", "b"],
        slo=pb.TokenSlo(token_latency_ms=20.0, max_nats=3.5),
        draft="off",
    )
    job = reading.job(request, 0.0)
    assert (job.max_new_tokens, job.seed, job.stop, job.draft) == (3, 11, ("a", "b"), None)
    assert job.sampling == Sampling(temperature=0.5, top_k=7, top_p=0.9)
    assert job.slo == TokenSlo(20.0, 3.5)


def test_without_a_seed_each_request_draws_its_own(reading: Reading) -> None:
    seeds = {reading.job(pb.GenerateRequest(token_ids=ids(1)), 0.0).seed for _ in range(20)}
    assert len(seeds) == 20


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.GenerateRequest(), "prompt: has neither text nor token_ids"),
        (pb.GenerateRequest(text=""), "text: holds no token"),
        (pb.GenerateRequest(token_ids=ids()), "token_ids: holds no token"),
        (pb.GenerateRequest(token_ids=ids(270)), "token_ids: holds token 270, the vocabulary ends at 269"),
        (pb.GenerateRequest(token_ids=ids(*[1] * 32)), "token_ids: is 32 tokens long, which leaves no room"),
        (pb.GenerateRequest(token_ids=ids(1, 2), max_new_tokens=31), "max_new_tokens: is 31; .* has room for 30"),
        (pb.GenerateRequest(token_ids=ids(1), sampling=pb.Sampling(temperature=-1.0)), "sampling.temperature: -1.0"),
        (pb.GenerateRequest(token_ids=ids(1), sampling=pb.Sampling(temperature=nan)), "sampling.temperature: nan"),
        (pb.GenerateRequest(token_ids=ids(1), sampling=pb.Sampling(top_p=0.0)), "sampling.top_p: 0.0"),
        (pb.GenerateRequest(token_ids=ids(1), stop=["a"] * 5), "stop: lists 5 strings, at most 4"),
        (pb.GenerateRequest(token_ids=ids(1), stop=["a", ""]), "stop: holds an empty string"),
        (pb.GenerateRequest(token_ids=ids(1), slo=pb.TokenSlo(token_latency_ms=-2.0)), "slo.token_latency_ms: -2.0"),
        (pb.GenerateRequest(token_ids=ids(1), slo=pb.TokenSlo(token_latency_ms=nan)), "slo.token_latency_ms: nan"),
        (pb.GenerateRequest(token_ids=ids(1), slo=pb.TokenSlo(max_nats=0.0)), "slo.max_nats: 0.0"),
        (pb.GenerateRequest(token_ids=ids(1), draft="XXL"), "draft: 'XXL' is not one of auto, off, S, M, L, XL"),
    ],
)
def test_what_is_malformed_is_named(reading: Reading, request_: pb.GenerateRequest, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        reading.job(request_, 0.0)


def test_a_text_above_the_limit_is_not_tokenized(reading: Reading) -> None:
    with pytest.raises(RequestTooLarge, match="text: size 101 is above the limit of 100"):
        reading.job(pb.GenerateRequest(text="a" * 101), 0.0)


@pytest.mark.parametrize(
    ("draft", "sampling", "drafts"),
    [
        ("auto", pb.Sampling(), SPACE.smallest),
        ("M", pb.Sampling(), SPACE.granularities["M"]),
        ("auto", pb.Sampling(temperature=1.0), SPACE.smallest),
        ("auto", pb.Sampling(seed=3), SPACE.smallest),  # greedy: nothing is drawn
        ("auto", pb.Sampling(temperature=1.0, seed=3), None),
        ("off", pb.Sampling(temperature=1.0, seed=3), None),
    ],
)
def test_what_a_seed_draws_is_not_drafted(
    reading: Reading, draft: str, sampling: pb.Sampling, drafts: Submodel | None
) -> None:
    assert reading.job(pb.GenerateRequest(token_ids=ids(1), draft=draft, sampling=sampling), 0.0).draft == drafts


def test_a_seed_and_a_draft_of_ones_own_contradict_each_other(reading: Reading) -> None:
    request = pb.GenerateRequest(token_ids=ids(1), draft="S", sampling=pb.Sampling(temperature=1.0, seed=0))
    with pytest.raises(InvalidRequest, match="draft: makes what a seed draws depend on how fast"):
        reading.job(request, 0.0)


def test_the_end_explains_itself() -> None:
    option = Option(SPACE.full, "XL", 3.0, 10.0)
    job = a_job(draft=SPACE.smallest, slo=TokenSlo(6.0))
    steps = [a_step([1], drafted=2), a_step([2, 3, 4], "length", drafted=3, accepted=2)]
    running = Running(job, Choice(option, 12.0, Limit.DEADLINE), Written(steps), num_sequences=3)
    for now_ms, step in zip((20.0, 35.0), running.generation, strict=True):
        running.take(step, now_ms)
    finish = finish_message(running, "length", 4, "abc", SPACE)
    why = finish.explanation
    assert finish.reason == pb.FINISH_REASON_LENGTH
    assert (finish.usage.num_prompt_tokens, finish.usage.num_new_tokens) == (2, 4)
    assert (why.model_version, why.submodel, why.granularity, why.nats) == ("abc", "ffn=64x2", "XL", 3.0)
    assert (why.draft, why.gamma, why.num_sequences, why.limited_by) == ("S", 3, 3, common.LIMIT_DEADLINE)
    assert (why.first_token_ms, why.total_ms, why.token_ms, why.predicted_token_ms) == (20.0, 35.0, 5.0, 12.0)
    assert why.slo_met
    assert (why.drafts.num_drafts, why.drafts.num_draft_tokens, why.drafts.num_accepted_tokens) == (2, 5, 2)
    assert list(why.drafts.num_accepted_tokens_per_pos) == [1, 1]


def test_a_draft_that_was_allowed_but_never_made_is_not_named() -> None:
    running = Running(
        a_job(draft=SPACE.smallest), Choice(Option(SPACE.full, "XL", None, 1.0), 1.0, Limit.NONE), Written([]), 1
    )
    running.take(a_step([1], "eos"), 1.0)
    why = finish_message(running, "eos", 1, "abc", SPACE).explanation
    assert (why.draft, why.gamma, why.HasField("nats")) == ("", 0, False)


def test_positions_that_no_draft_reached_are_left_out() -> None:
    statistics = Statistics()
    statistics.add(a_step([1, 2, 3], drafted=4, accepted=2))
    statistics.add(a_step([1], drafted=4, accepted=0))
    assert list(drafts_message(statistics).num_accepted_tokens_per_pos) == [1, 1]
    assert list(drafts_message(Statistics()).num_accepted_tokens_per_pos) == []
