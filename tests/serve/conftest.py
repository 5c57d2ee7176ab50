"""A front with round numbers, a tiny model with invented tables, and one real server for all tests that need it."""

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from elastic.checkpoint import Manifest, save_model
from elastic.data.tokenizer import train_tokenizer
from elastic.model.config import EncoderConfig, Preprocess, TextConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.profile.store import LATENCY, QUALITY
from elastic.profile.tables import LatencyRow, LatencyTable, Modality, QualityRow, QualityTable
from elastic.select import TASK_OF
from elastic.serve.access.gate import Gate
from elastic.serve.api.service import EmbeddingService
from elastic.serve.batching import Costs, Front, Level
from elastic.serve.config import ServeConfig
from elastic.serve.observer import Observer, Observers
from elastic.serve.resident import ResidentModel
from elastic.serve.served import Served
from elastic.submodel import Space, Submodel

DEPTH = 2
MAX_BATCH = 8


def level(name: str, ffn_dim: int, first_ms: float, more_ms: float, quality: float) -> Level:
    """A level whose batch of n takes `first_ms + (n - 1) * more_ms`, with half the width worth 0.1 less."""
    times = tuple(first_ms + extra * more_ms for extra in range(MAX_BATCH))
    return Level(Submodel((ffn_dim,) * DEPTH), name, times, {64: quality, 32: quality - 0.1})


@pytest.fixture
def front() -> Front:
    """S: 4 ms + 1 ms per further input, R@1 0.3. M: 8 + 2, 0.4. L: 12 + 4, 0.5. XL: 20 + 8, 0.6."""
    return Front(
        (
            level("S", 16, 4.0, 1.0, 0.3),
            level("M", 32, 8.0, 2.0, 0.4),
            level("L", 64, 12.0, 4.0, 0.5),
            level("XL", 128, 20.0, 8.0, 0.6),
        )
    )


@pytest.fixture
def costs(front: Front) -> Costs:
    """Both modalities served from the same front, uncorrected."""
    return Costs({"image": front, "text": front}, {"image": (1.0,) * 4, "text": (1.0,) * 4})


IMAGE_SIZE = 16
CAPTIONS = ["a red house", "a small cat", "the blue car", "two green trees"]
CONFIG = EncoderConfig(
    vision=VisionConfig(image_size=IMAGE_SIZE, patch_size=8, width=32, depth=2, num_heads=2),
    text=TextConfig(vocab_size=64, max_tokens=8, width=32, depth=2, num_heads=2),
    embed_dims=(8, 16, 32),
)
MS_OF = {"S": 100.0, "M": 400.0, "L": 1600.0, "XL": 6400.0}
"""Predicted time of one input: invented, so that the choice is the table's alone however busy the machine is. A
factor of 4 apart, because the online correction can halve each of them."""
QUALITY_OF = {"S": 0.3, "M": 0.4, "L": 0.5, "XL": 0.6}


def write_tiny_run(run: Path, seed: int = 0) -> Path:
    """A complete run directory; another seed makes another model of the same shape."""
    torch.manual_seed(seed)
    encoder = Encoder(CONFIG).eval()
    tokenizer = train_tokenizer(CAPTIONS, CONFIG.text.vocab_size)  # type: ignore[union-attr]
    save_model(run, encoder, Manifest(encoder=CONFIG, preprocess=Preprocess(image_size=IMAGE_SIZE)), tokenizer)
    spaces: dict[Modality, Space] = {"image": encoder.space, "text": encoder.text_space}  # type: ignore[dict-item]
    provenance = collect(device_fingerprint())
    latency = [
        latency_row(str(provenance.device), modality, submodel, size, MS_OF[name] * (1 + 0.25 * (size - 1)))
        for modality, space in spaces.items()
        for name, submodel in space.granularities.items()
        for size in (1, 2, 4, 8)
    ]
    quality = [
        quality_row(modality, submodel, spaces["image"].full, width, QUALITY_OF[name] * width / 32)
        for modality, space in spaces.items()
        for name, submodel in space.granularities.items()
        for width in CONFIG.embed_dims
    ]
    LatencyTable(latency, provenance).save(run / LATENCY)
    QualityTable(quality, provenance).save(run / QUALITY)
    return run


def latency_row(device: str, modality: Modality, submodel: Submodel, batch_size: int, ms: float) -> LatencyRow:
    return LatencyRow(
        device=device,
        dtype="float32",
        num_threads=1,
        modality=modality,
        submodel=submodel,
        batch_size=batch_size,
        n=1,
        mean_ms=ms,
        p50_ms=ms,
        p90_ms=ms,
        p99_ms=ms,
        min_ms=ms,
        max_ms=ms,
    )


def quality_row(modality: Modality, query: Submodel, index: Submodel, embed_dim: int, value: float) -> QualityRow:
    return QualityRow(
        task=TASK_OF[modality],
        query_submodel=query,
        index_submodel=index,
        embed_dim=embed_dim,
        domain="mean",
        recall_at_1=value,
        mmp_at_5=value,
        num_queries=10,
    )


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a random model of both towers and its tables."""
    return write_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with other weights."""
    return write_tiny_run(tmp_path_factory.mktemp("runs") / "other", seed=1)


@pytest.fixture(scope="session")
def tiny_model(tiny_run: Path) -> ResidentModel:
    """The model of `tiny_run`, because loading and tracing it takes longer than most tests that need it."""
    return ResidentModel.load(tiny_run)


@pytest.fixture(scope="session")
def other_model(other_run: Path) -> ResidentModel:
    """The model of `other_run`."""
    return ResidentModel.load(other_run)


def service_of(model: ResidentModel, config: ServeConfig, observers: Sequence[Observer] = ()) -> EmbeddingService:
    """What `EmbeddingService.load` returns, for a model that is loaded already."""
    observer = Observers(observers)
    return EmbeddingService(Served.of(model, config, observer), config, observer, Gate.of(config.api_keys))


@pytest.fixture(scope="session")
def png() -> bytes:
    """A small valid image."""
    return encode_png(Image.new("RGB", (40, 30), (200, 30, 30)))


def encode_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def metrics_port() -> int:
    """Where `running` shows its metrics."""
    return free_port()


@pytest.fixture(scope="session")
def http_port() -> int:
    """Where `running` speaks HTTP."""
    return free_port()


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """An `elastic serve` of its own."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> None:
        """SIGTERM, which must end it cleanly."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=90) == 0, self.log.read_text()


@contextmanager
def server_process(run: Path, folder: Path, *flags: str, **variables: str) -> Iterator[ServerProcess]:
    """`elastic serve` on HAProxy, ready, with more in its environment; ended at the end if it has not been stopped."""
    port = free_port()
    command = [sys.executable, "-m", "elastic", "serve", str(run), "--port", str(port), "--profile", "never", *flags]
    log = folder / "log.txt"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | variables
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            while "ready at" not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
            yield ServerProcess(f"127.0.0.1:{port}", process, log)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=90)


SILENCE_S = 8
"""When HAProxy closes a client of `running` that says nothing, in place of minutes."""
NUM_REPLICAS = 2
"""Of `running`."""


@pytest.fixture(scope="session")
def running(
    tiny_run: Path, tmp_path_factory: pytest.TempPathFactory, metrics_port: int, http_port: int
) -> Iterator[ServerProcess]:
    """One server for all tests that leave it as whole as it was, and for the one, run last, that ends it.

    Its policy does not look at what arrives, so what one test asks is answered the same whatever others have asked.
    However it is stopped, it must end cleanly.
    """
    flags = ["--http-port", str(http_port), "--metrics-port", str(metrics_port), "--policy", "max_accuracy"]
    flags += ["--num-replicas", str(NUM_REPLICAS)]
    silence = {"RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(SILENCE_S)}
    with server_process(tiny_run, tmp_path_factory.mktemp("server"), *flags, **silence) as started:
        yield started
        if started.process.poll() is None:
            started.stop()
    last_words = started.log.read_text().split()[-3:]
    assert last_words == ["stopping", "...", "stopped"], started.log.read_text()


@pytest.fixture(scope="session")
def server(running: ServerProcess) -> str:
    """Where `running` answers."""
    return running.address
