import numpy as np
import pytest

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.errors import InvalidRequest, RequestTooLarge
from elastic.quantise import Dtype, Output, cut, dequantise, from_bytes
from elastic.serve.batching import Front
from elastic.serve.payloads.outputs import DTYPE_OF, MAX_OUTPUTS, read_outputs, vector_messages, with_width_of
from elastic.submodel import Slo

WIDTHS = [32, 64]
SLO = Slo(latency_ms=10.0)


def read(*outputs: pb.Output) -> tuple[Output, ...]:
    return read_outputs(pb.EmbedRequest(outputs=outputs), WIDTHS)


def test_a_request_that_lists_nothing_has_no_outputs() -> None:
    assert read() == ()


def test_every_dtype_of_the_messages_has_a_name() -> None:
    assert set(DTYPE_OF) == set(pb.Dtype.values())


def test_outputs_are_read_in_order_and_an_unspecified_dtype_is_float32() -> None:
    found = read(pb.Output(embed_dim=32, dtype=pb.DTYPE_BINARY), pb.Output(), pb.Output(dtype=pb.DTYPE_INT8))
    assert found == (Output(32, "binary"), Output(0, "float32"), Output(0, "int8"))


def test_a_width_that_was_not_trained_is_refused_and_named() -> None:
    with pytest.raises(InvalidRequest, match=r"outputs\[1\].embed_dim: 33 is none of the trained widths \[32, 64\]"):
        read(pb.Output(embed_dim=32), pb.Output(embed_dim=33))


def test_a_dtype_of_a_newer_client_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"outputs\[0\].dtype"):
        read(pb.Output(dtype=99))  # type: ignore[arg-type]


def test_too_many_outputs_are_refused() -> None:
    with pytest.raises(RequestTooLarge):
        read(*[pb.Output()] * (MAX_OUTPUTS + 1))


def test_the_objective_keeps_its_width_where_an_output_leaves_it_open() -> None:
    slo = Slo(latency_ms=10.0, max_embed_dim=32)
    assert with_width_of((), slo) == slo
    assert with_width_of((Output(64), Output(0, "binary")), slo) == slo


def test_outputs_that_name_every_width_hold_the_objective_to_the_widest() -> None:
    assert with_width_of((Output(32), Output(64, "int8")), SLO) == Slo(latency_ms=10.0, embed_dim=64)


def test_an_objective_with_a_width_that_no_output_has_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="decides nothing"):
        with_width_of((Output(32),), Slo(latency_ms=10.0, embed_dim=64))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint8"])
def test_every_vector_is_cut_then_normalised_then_quantised(front: Front, dtype: Dtype) -> None:
    whole = np.random.default_rng(0).standard_normal(64).astype(np.float32)
    (narrow, wide) = vector_messages(whole, 64, front.levels[2], [Output(32, dtype), Output(0, dtype)])
    for message, width in ((narrow, 32), (wide, 64)):
        values = from_bytes(message.values, dtype)
        assert (message.embed_dim, DTYPE_OF[message.dtype]) == (width, dtype)
        assert dequantise(values, dtype, width, message.scale) == pytest.approx(cut(whole, width), abs=2e-3)


def test_every_vector_says_what_its_width_is_worth(front: Front) -> None:
    vectors = vector_messages(np.ones(64, np.float32), 64, front.levels[2], [Output(32), Output()])
    assert [vector.quality for vector in vectors] == pytest.approx([0.4, 0.5])
