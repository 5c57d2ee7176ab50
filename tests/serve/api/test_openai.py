import base64
import json

import numpy as np
import pytest

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.errors import InvalidRequest
from elastic.serve.api.openai import (
    EmbeddingsBody,
    embed_request,
    embeddings_answer,
    model_answer,
    parameter_of,
    read_body,
)

PNG = b"\x89PNG..."
DATA_URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
VALUES = np.array([0.6, 0.8], "<f4")


def body(**fields: object) -> EmbeddingsBody:
    return read_body(json.dumps({"input": "a cat", "model": "m"} | fields).encode())


def inputs(value: object) -> list[pb.Input]:
    return list(embed_request(body(input=value)).inputs)


def answer(vector: pb.Vector | None = None, **fields: object) -> dict[str, object]:
    why = pb.Explanation(granularity="S", num_tokens=3, limited_by=pb.LIMIT_DEADLINE)
    item = pb.Embedding(values_f32=VALUES.tobytes(), explanation=why)
    if vector is not None:
        item = pb.Embedding(vectors=[vector], explanation=why)
    return embeddings_answer(pb.EmbedReply(embeddings=[item, item], slo_met=True), body(**fields), "tiny")


def test_a_string_is_a_text_and_a_list_keeps_its_order() -> None:
    assert inputs("a cat") == [pb.Input(text="a cat")]
    assert inputs(["a cat", DATA_URI, "a dog"]) == [pb.Input(text="a cat"), pb.Input(image=PNG), pb.Input(text="a dog")]


def test_objects_say_what_they_are() -> None:
    url = "https://example.com/a.png"
    assert inputs([{"image": DATA_URI}, {"image": url}, {"text": DATA_URI}]) == [
        pb.Input(image=PNG),
        pb.Input(image_url=url),
        pb.Input(text=DATA_URI),
    ]


def test_a_string_that_is_a_url_is_a_text() -> None:
    assert inputs("https://example.com/a.png") == [pb.Input(text="https://example.com/a.png")]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([1, 2, 3], r"input\[0\]: token numbers"),
        (["a", [1, 2]], r"input\[1\]: token numbers"),
        ([None], r"input\[0\]: is neither"),
        ([{"image": 5}], "is neither"),
        ([{"image": DATA_URI, "text": "both"}], "is neither"),
        ([{"image": "/etc/passwd"}], "neither data:image"),
        (["data:image/png;base64,!!!"], "not valid base64"),
    ],
)
def test_what_is_neither_text_nor_image_is_refused_and_named(value: object, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        inputs(value)


def test_the_objective_becomes_that_of_the_message() -> None:
    request = embed_request(body(dimensions=16, latency_slo_ms=12.5, min_quality=0.25, output_dtype="float"))
    assert request.slo == pb.Slo(latency_ms=12.5, min_quality=0.25, embed_dim=16)
    assert list(request.outputs) == []
    assert embed_request(body()).slo == pb.Slo()


def test_a_dtype_is_one_output() -> None:
    request = embed_request(body(output_dtype="ubinary", encoding_format="float"))
    assert list(request.outputs) == [pb.Output(dtype=pb.DTYPE_UBINARY)]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": "16"}, "dimensions"),
        ({"latency_slo_ms": -1}, "latency_slo_ms"),
        ({"min_quality": 2}, "min_quality"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"output_dtype": "int4"}, "output_dtype"),
        ({"latency_slo": 5}, "latency_slo"),
        ({"encoding_format": "base64", "output_dtype": "int8"}, "encoding_format"),
    ],
)
def test_a_wrong_field_is_refused_and_named(fields: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        body(**fields)
    assert raised.value.field == field


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"input": "\xff"}'])
def test_what_is_not_a_request_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        read_body(data)


def test_an_answer_has_openais_shape_and_explains_itself() -> None:
    found = answer()
    assert (found["object"], found["model"]) == ("list", "tiny")
    assert found["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    first, second = found["data"]  # type: ignore[misc]
    assert (first["index"], second["index"], first["object"]) == (0, 1, "embedding")
    assert first["embedding"] == pytest.approx([0.6, 0.8])
    assert (first["elastic"]["granularity"], first["elastic"]["limited_by"]) == ("S", "LIMIT_DEADLINE")
    assert first["elastic"]["queue_ms"] == 0.0  # zeros are not left out
    assert found["elastic"]["slo_met"] is True  # type: ignore[index]


def test_base64_is_little_endian_float32() -> None:
    found = answer(encoding_format="base64")
    assert base64.b64decode(found["data"][0]["embedding"]) == VALUES.tobytes()  # type: ignore[index]


def test_a_quantised_vector_comes_as_its_numbers_with_its_scale() -> None:
    vector = pb.Vector(embed_dim=2, dtype=pb.DTYPE_INT8, values=b"\x7f\x81", scale=0.5)
    (first, _) = answer(vector, output_dtype="int8")["data"]  # type: ignore[misc]
    assert first["embedding"] == [127, -127]
    assert (first["elastic"]["dtype"], first["elastic"]["scale"]) == ("int8", 0.5)


def test_a_model_is_listed_with_what_info_says() -> None:
    found = model_answer(pb.InfoReply(model_name="tiny", embed_dims=[8, 16]), 5)
    assert (found["id"], found["object"], found["created"], found["owned_by"]) == ("tiny", "model", 5, "elastic")
    assert found["elastic"]["embed_dims"] == [8, 16]


def test_errors_name_this_apis_fields() -> None:
    assert parameter_of("slo.embed_dim") == "dimensions"
    assert parameter_of("inputs[3].image") == "input[3].image"
    assert parameter_of("inputs") == "input"
    assert parameter_of("x-deadline-unix-ms") == "x-deadline-unix-ms"
