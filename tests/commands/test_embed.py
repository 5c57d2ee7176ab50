from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tyro

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import (
    EmbeddingServiceServicer,
    add_EmbeddingServiceServicer_to_server,
)
from elastic.commands.embed import Embed
from elastic.errors import ConfigError, ServerUnavailable


class EchoService(EmbeddingServiceServicer):
    """Embeds an image as [1, 0] and a text as [0, 1]."""

    def Embed(self, request: pb.EmbedRequest, context: grpc.ServicerContext) -> pb.EmbedReply:
        return pb.EmbedReply(embeddings=[self.answer(item) for item in request.inputs], slo_met=True, slack_ms=4.0)

    @staticmethod
    def answer(item: pb.Input) -> pb.Embedding:
        is_image = item.WhichOneof("content") == "image"
        kind = pb.MODALITY_IMAGE if is_image else pb.MODALITY_TEXT
        why = pb.Explanation(
            modality=kind, submodel="ffn=16x2", granularity="S", embed_dim=2, limited_by=pb.LIMIT_DEADLINE
        )
        return pb.Embedding(values_f32=np.array([is_image, not is_image], "<f4").tobytes(), explanation=why)


@pytest.fixture
def address() -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    add_EmbeddingServiceServicer_to_server(EchoService(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def image(tmp_path: Path) -> str:
    (tmp_path / "cat.png").write_bytes(b"image")
    return str(tmp_path / "cat.png")


def test_rows_are_in_the_order_in_which_the_inputs_were_named(
    address: str, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "out.npy"
    Embed(inputs=("a cat", image, "a dog"), server=address, output=output).run()
    assert np.load(output).tolist() == [[0, 1], [1, 0], [0, 1]]
    printed = capsys.readouterr().out
    assert printed.index("a cat") < printed.index("cat.png") < printed.index("a dog")
    assert "objective met" in printed and "deadline" in printed


def test_a_file_name_without_a_file_is_not_embedded_as_a_text(address: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        Embed(inputs=("missing.png",), server=address).run()


def test_nothing_to_embed_is_an_error(address: str) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        Embed(inputs=(), server=address).run()


def test_without_a_server_the_error_says_how_to_start_one() -> None:
    with pytest.raises(ServerUnavailable, match="elastic serve"):
        Embed(inputs=("a cat",), server="127.0.0.1:1").run()


def test_flags_follow_the_field_names() -> None:
    words = ["a.png", "a cat", "--latency-slo-ms", "7.5", "--embed-dim", "64", "--server", "host:1"]
    embed = tyro.cli(Embed, args=words)
    assert embed == Embed(inputs=("a.png", "a cat"), latency_slo_ms=7.5, embed_dim=64, server="host:1")
