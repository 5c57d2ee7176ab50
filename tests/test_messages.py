import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.errors import ElasticError, InvalidRequest, Overloaded
from elastic.messages import GRACE_MS, Ask, Deadline, embeddings, image_message, stream_answer, stream_input
from elastic.quantise import DTYPES, Dtype, Output, cut, quantise


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_an_answer_is_waited_for_beyond_the_budget_but_not_repeated_there() -> None:
    clock = FakeClock()
    deadline = Deadline(budget_ms=500.0, timeout_s=30.0, clock=clock)
    assert (deadline.wait_s(), deadline.left_s()) == (0.5 + GRACE_MS / 1000, 0.5)
    clock.now_s += 0.7
    assert deadline.wait_s() == pytest.approx(0.8)
    assert deadline.left_s() == pytest.approx(-0.2)
    clock.now_s += 10.0
    assert deadline.wait_s() == 0.0


def test_without_a_budget_the_timeout_is_both() -> None:
    deadline = Deadline(budget_ms=None, timeout_s=30.0, clock=FakeClock())
    assert (deadline.wait_s(), deadline.left_s(), deadline.metadata()) == (30.0, 30.0, [])


def test_the_absolute_deadline_counts_from_when_the_call_began() -> None:
    clock = FakeClock()
    deadline = Deadline(budget_ms=60_000.0, timeout_s=30.0, clock=clock)
    clock.now_s += 50.0
    ((name, value),) = deadline.metadata()
    assert name == "x-deadline-unix-ms"
    assert float(value) / 1000 - time.time() < 10.001


@pytest.mark.parametrize(
    "ask",
    [
        Ask(latency_slo_ms=float("nan")),
        Ask(embed_dim=(64, 16)),
        Ask(dtype="int8", outputs=[Output(4)]),
    ],
)
def test_what_no_server_could_answer_is_refused_at_once(ask: Ask) -> None:
    with pytest.raises(InvalidRequest):
        ask.request([])


def test_images_are_bytes_files_or_urls_and_a_string_of_a_stream_is_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"file")
    assert image_message(b"bytes") == pb.Input(image=b"bytes")
    assert image_message(tmp_path / "a.png") == stream_input(tmp_path / "a.png") == pb.Input(image=b"file")
    assert image_message("https://a.test/") == pb.Input(image_url="https://a.test/")
    assert stream_input("https://a.test/") == pb.Input(text="https://a.test/")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vector_of_every_dtype_survives_the_wire(dtype: Dtype) -> None:
    unit = cut(np.random.default_rng(0).standard_normal(16), 16)
    values, scale = quantise(unit, dtype)
    message = pb.Vector(embed_dim=16, dtype=f"DTYPE_{dtype.upper()}", values=values.tobytes(), scale=scale)  # type: ignore[arg-type]
    why = pb.Explanation(submodel="ffn=16x2", modality=pb.MODALITY_TEXT)
    (found,) = embeddings(pb.EmbedReply(embeddings=[pb.Embedding(vectors=[message], explanation=why)]))
    assert np.array_equal(found.values, values)
    assert float(found.vectors[0].dequantised() @ unit) > (0.6 if "binary" in dtype else 0.999)


def test_an_answer_of_a_stream_is_an_error_with_its_type_where_the_server_named_one() -> None:
    told = pb.Failure(code=8, message="busy", error_json='{"type": "Overloaded", "fields": ["busy", 12.5]}')
    position, error = stream_answer(pb.EmbedStreamReply(id=7, failure=told))
    assert position == 7 and isinstance(error, Overloaded)
    _, other = stream_answer(pb.EmbedStreamReply(id=7, failure=pb.Failure(code=13, message="internal error 1a")))
    assert type(other) is ElasticError and str(other) == "internal error 1a"


def test_the_messages_load_neither_torch_nor_ray() -> None:
    code = "import sys, elastic.messages; print({'torch', 'ray', 'timm', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
