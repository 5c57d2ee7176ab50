import json

import pytest

from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic.errors import InvalidRequest
from elastic.serve.api.openai import read_json
from elastic.serve.generation.openai import Answer, CompletionsBody, generate_request


def body(**fields: object) -> CompletionsBody:
    return read_json(CompletionsBody, json.dumps({"prompt": "the cat"} | fields).encode())


def read(**fields: object) -> pb.GenerateRequest:
    return generate_request(body(**fields))


def test_what_is_left_out_is_as_openai_has_it() -> None:
    request = read()
    assert (request.text, request.max_new_tokens) == ("the cat", 16)
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (1.0, 1.0, 0)
    assert not request.sampling.HasField("seed") and not request.slo.HasField("max_nats")
    assert (request.slo.token_latency_ms, request.draft, list(request.stop)) == (0.0, "", [])


def test_null_is_the_same_as_left_out() -> None:
    names = [
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "n",
        "logprobs",
        "suffix",
    ]
    expected = read()
    expected.sampling.ClearField("top_p")  # as good as 1
    assert read(**dict.fromkeys(names)) == expected


def test_everything_that_is_set_arrives() -> None:
    drawing = {"temperature": 0.0, "top_p": 0.5, "top_k": 3, "seed": 9}
    request = read(max_tokens=5, stop="x", token_latency_slo_ms=20.0, max_nats=3.0, draft="S", **drawing)
    assert request == pb.GenerateRequest(
        text="the cat",
        max_new_tokens=5,
        sampling=pb.Sampling(temperature=0.0, top_p=0.5, top_k=3, seed=9),
        stop=["x"],
        slo=pb.TokenSlo(token_latency_ms=20.0, max_nats=3.0),
        draft="S",
    )
    assert list(read(stop=["a", "b"]).stop) == ["a", "b"]


@pytest.mark.parametrize("prompt", [[3, 4, 5], [[3, 4, 5]]])
def test_tokens_are_a_prompt_too(prompt: object) -> None:
    assert list(read(prompt=prompt).token_ids.ids) == [3, 4, 5]


def test_a_list_around_one_text_is_that_text() -> None:
    assert read(prompt=["a cat"]).text == "a cat"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": ["a", "b"]}, "prompt: lists 2 prompts"),
        ({"prompt": [[1], [2]]}, "prompt: lists 2 prompts"),
        ({"prompt": [-1]}, "prompt: holds a number that is no token"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 2}, "n: Input should be 1"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"logprobs": 3}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"token_latency_slo": 5}, "token_latency_slo: Extra inputs are not permitted"),
        ({"prompt": 7}, "prompt: is neither a text nor a list of tokens"),
        ({"prompt": [True]}, "prompt: is neither"),
        ({"prompt": [1, "a"]}, "prompt: is neither"),
        ({"stop": [1]}, "stop: is neither a text nor a list of texts"),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(fields: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read(**fields)


FINISH = pb.Finish(
    reason=pb.FINISH_REASON_STOP,
    usage=pb.Usage(num_prompt_tokens=2, num_new_tokens=3),
    explanation=pb.GenerationExplanation(granularity="M", drafts=pb.Drafts(num_drafts=1)),
)


def events(data: bytes) -> list[object]:
    assert data == b"" or data.endswith(b"\n\n")
    return [
        line if (line := event.removeprefix(b"data: ")) == b"[DONE]" else json.loads(line)
        for event in data.split(b"\n\n")[:-1]
    ]


def test_a_whole_answer_has_text_reason_usage_and_explanation() -> None:
    found = Answer(body(), "cmpl-1", 5, "tiny").whole("sat", FINISH)
    assert found["choices"] == [{"index": 0, "text": "sat", "logprobs": None, "finish_reason": "stop"}]
    assert found["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert (found["id"], found["object"], found["created"], found["model"]) == ("cmpl-1", "text_completion", 5, "tiny")
    assert (found["elastic"]["granularity"], found["elastic"]["drafts"]["num_drafts"]) == ("M", 1)


def test_a_stream_has_a_chunk_for_each_piece_of_text_and_none_for_half_a_character() -> None:
    answer = Answer(body(stream=True), "cmpl-1", 5, "tiny")
    (chunk,) = events(answer.events(pb.GenerateReply(text="sat", token_ids=[4])))
    assert chunk["choices"] == [{"index": 0, "text": "sat", "logprobs": None, "finish_reason": None}]  # type: ignore[index]
    assert "usage" not in chunk and "elastic" not in chunk  # type: ignore[operator]
    assert answer.events(pb.GenerateReply(token_ids=[200])) == b""


@pytest.mark.parametrize("includes", [False, True])
def test_the_last_chunks_are_the_reason_and_if_asked_for_the_usage(includes: bool) -> None:
    answer = Answer(body(stream=True, stream_options={"include_usage": includes}), "cmpl-1", 5, "tiny")
    last, *rest, done = events(answer.events(pb.GenerateReply(finish=FINISH)))
    assert last["choices"][0] == {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}  # type: ignore[index]
    assert last["elastic"]["granularity"] == "M"  # type: ignore[index]
    assert done == b"[DONE]"
    assert [(chunk["choices"], chunk["usage"]["total_tokens"]) for chunk in rest] == [([], 5)] * includes  # type: ignore[index]
