"""The policy as Serve's controller calls it, and one server whose replicas come and go under real requests."""

import asyncio
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
import torch
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic._pb.elastic.v1.embedding_pb2_grpc import EmbeddingServiceStub
from elastic.checkpoint import Manifest, save_model
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.profile.latency import LatencyConfig, measure
from elastic.profile.store import LATENCY, QUALITY
from elastic.profile.tables import QualityTable
from elastic.serve.scaling.load import Load
from elastic.serve.scaling.ray_serve import ReplicaPolicy, autoscaling_config, record, total_load
from elastic.serve.scaling.scaler import ScalingRules
from tests.serve.conftest import (
    QUALITY_OF,
    ServerProcess,
    encode_png,
    free_port,
    quality_row,
    server_process,
)


@dataclass
class Value:
    value: float


@dataclass
class FakeContext:
    """What Serve would tell."""

    current_num_replicas: int = 1
    target_num_replicas: int = 1
    current_time: float | None = 0.0
    raw_metrics: dict[str, dict[str, list[Value]]] = field(default_factory=dict)

    def add(self, replica: str, load: Load) -> None:
        for name, value in record(load).items():
            self.raw_metrics.setdefault(name, {}).setdefault(replica, []).append(Value(value))


LIGHT = Load(span_ms=1e4, window_ms=1e4, requests=10, best=6, full_ms=1000, table_ms=1000, busy_ms=1000)
HEAVY = Load(span_ms=1e4, window_ms=1e4, requests=99, missed=9, best=60, full_ms=28_000, table_ms=9e3, busy_ms=9e3)


def test_what_replicas_record_is_summed_from_their_newest_values():
    context = FakeContext()
    context.add("a", HEAVY)
    context.add("a", LIGHT)
    context.add("b", LIGHT)
    assert total_load(context) == LIGHT + LIGHT


def test_without_records_the_load_is_unknown():
    assert total_load(FakeContext()) == Load()
    context = FakeContext()
    context.raw_metrics = {"requests": {"a": []}}
    assert total_load(context) == Load()


def test_the_policy_remembers_from_call_to_call():
    policy = ReplicaPolicy(max_replicas=8)
    wanted = []
    for second in (0.0, 1.0, 2.0):
        context = FakeContext(current_time=second)
        context.add("a", HEAVY)
        wanted.append(policy(context)[0])
    assert wanted == [1, 1, 4]  # 2.8 / 0.7


def test_serve_applies_no_delay_of_its_own_and_the_first_number_keeps_the_limits():
    rules = ScalingRules(min_replicas=2, max_replicas=4)
    settings = autoscaling_config(rules, first=1)
    assert settings["initial_replicas"] == 2
    assert (settings["upscale_delay_s"], settings["downscale_delay_s"]) == (0, 0)


SIZE = 128
OBJECTIVES = 6
"""Latency objective, in calls of the largest submodel."""
BUSY, IDLE = 3.0, 0.15
"""Rates, in what one replica serves of the largest submodel: far more than two can take, and little enough for one."""


@dataclass(frozen=True)
class BusyRun:
    """A model that keeps a core busy for tens of milliseconds, and how many these are."""

    folder: Path
    call_ms: float
    """Of the largest submodel, for one image."""


@pytest.fixture(scope="module")
def busy_run(tmp_path_factory: pytest.TempPathFactory) -> BusyRun:
    torch.manual_seed(0)
    vision = VisionConfig(image_size=SIZE, patch_size=8, width=192, depth=4, num_heads=2)
    encoder = Encoder(EncoderConfig(vision=vision, embed_dims=(32,)))
    run = tmp_path_factory.mktemp("runs") / "busy"
    save_model(run, encoder.eval(), Manifest(encoder=encoder.config, preprocess=Preprocess(image_size=SIZE)))
    levels = encoder.space.granularities
    latency = measure(
        encoder, LatencyConfig(batch_sizes=(1, 4), rounds=4, warmup_rounds=1), submodels={"image": [*levels.values()]}
    )
    quality = [
        quality_row("image", submodel, encoder.space.full, 32, QUALITY_OF[name]) for name, submodel in levels.items()
    ]
    latency.save(run / LATENCY)
    QualityTable(quality, latency.provenance).save(run / QUALITY)
    return BusyRun(run, call_ms=latency.predict("image", encoder.space.full, batch_size=1, quantile="p50"))


class Watched:
    """The replicas of a server, as its metrics show them."""

    def __init__(self, server: ServerProcess, metrics_port: int) -> None:
        self.server, self.counts = server, [0]
        self._url = f"http://127.0.0.1:{metrics_port}/metrics"

    async def until(self, wanted: int, seconds: float = 90.0) -> None:
        """Wait for a number of replicas that live, and note every number seen."""
        give_up_s = time.monotonic() + seconds
        while self.counts[-1] != wanted:
            assert time.monotonic() < give_up_s, f"waited for {wanted} replicas, saw {self.counts}"
            await asyncio.sleep(0.3)
            number = len(await self._samples("elastic_waiting_inputs"))
            if number != self.counts[-1]:
                self.counts.append(number)

    async def until_all_answer(self, number: int, seconds: float = 30.0) -> None:
        """Wait until so many replicas have answered a request."""
        give_up_s = time.monotonic() + seconds
        while len(found := await self._samples("elastic_requests_total", outcome="met")) < number:
            assert time.monotonic() < give_up_s, f"only {sorted(found)} answer"
            await asyncio.sleep(0.3)

    async def _samples(self, name: str, **labels: str) -> set[str]:
        """Replicas with a value above zero, or with any of a gauge."""
        text = await asyncio.to_thread(lambda: urllib.request.urlopen(self._url, timeout=10).read().decode())
        return {
            sample.labels["replica"]
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
            if sample.value > 0 or family.type == "gauge"
        }


@pytest.fixture(scope="module")
def watched(busy_run: BusyRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    port = free_port()
    flags = ["--min-replicas", "0", "--max-replicas", "3", "--scale-down-after-s", "4", "--scale-to-zero-after-s", "4"]
    ports = ["--metrics-port", str(port), "--http-port", str(free_port())]
    with server_process(busy_run.folder, tmp_path_factory.mktemp("server"), *flags, *ports) as server:
        yield Watched(server, port)
        server.stop()


class Caller:
    """Sends a steady stream of requests over one channel and counts how they end."""

    def __init__(self, address: str, image: bytes, call_ms: float) -> None:
        self.ended: Counter[grpc.StatusCode] = Counter()
        self._address, self._call_ms = address, call_ms
        slo = pb.Slo(latency_ms=OBJECTIVES * call_ms)
        self._request = pb.EmbedRequest(inputs=[pb.Input(image=image)], slo=slo)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Caller":
        self._channel = grpc.aio.insecure_channel(self._address)
        self._stub = EmbeddingServiceStub(self._channel)
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(*self._tasks)
        await self._channel.close()

    async def send(self, load: float) -> None:
        """Until cancelled, so many calls in the time of one, answered or not."""
        while True:
            task = asyncio.create_task(self.call())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(self._call_ms / 1e3 / load)

    async def call(self, timeout: float = 60.0) -> None:
        try:
            await self._stub.Embed(self._request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            self.ended[error.code()] += 1
        else:
            self.ended[grpc.StatusCode.OK] += 1


@pytest.mark.ray
@pytest.mark.serve
@pytest.mark.slow
def test_replicas_come_under_load_and_go_without_it_and_no_call_is_lost(watched: Watched, busy_run: BusyRun):
    """From one to three and back, then to none; a call then waits for a replica and is answered."""
    image = encode_png(Image.new("RGB", (SIZE, SIZE), (200, 30, 30)))

    async def story() -> Caller:
        await watched.until(1)
        async with Caller(watched.server.address, image, busy_run.call_ms) as caller:
            load = asyncio.create_task(caller.send(BUSY))
            await watched.until(3)
            await watched.until_all_answer(3)
            load.cancel()
            light = asyncio.create_task(caller.send(IDLE))
            await watched.until(1)
            light.cancel()
            await watched.until(0)
            await caller.call()
            await watched.until(1)
        return caller

    caller = asyncio.run(story())
    # Refused or expired is an answer; anything else would be a call that met a replica on its way out.
    answers = {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert set(caller.ended) <= answers, caller.ended
    assert caller.ended[grpc.StatusCode.OK] > 10
    rising, falling = watched.counts[: watched.counts.index(3) + 1], watched.counts[watched.counts.index(3) :]
    assert rising == sorted(rising) and falling[:-1] == sorted(falling[:-1], reverse=True)
    assert falling[-2:] == [0, 1]
