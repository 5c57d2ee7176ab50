"""The Ray Serve deployment: one replica is one model thread, and is itself the ingress of gRPC and HTTP.

A gRPC call reaches the method of its name, whatever its service, so the methods of `EmbeddingService` and of
`grpc.health.v1.Health` are all its own. They are given bytes (`api/decoding.py`), either by gRPC itself or, for a call
that waited for a replica, by Serve (`api/services.py`). Everything of substance is in `api`.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import replace
from pathlib import Path

from ray import serve
from starlette.applications import Starlette

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.serve.access.usage import USAGE
from elastic.serve.api.decoding import parse, parse_stream
from elastic.serve.api.grpc import Context, answer, answer_stream
from elastic.serve.api.health import Health
from elastic.serve.api.http import http_app
from elastic.serve.api.service import EmbeddingService
from elastic.serve.api.services import answer_here
from elastic.serve.config import ServeConfig
from elastic.serve.lifecycle import ReplicaLifecycle, settle_process
from elastic.serve.observer import Observer
from elastic.serve.rollout.follow import Follower
from elastic.serve.rollout.release import Releases
from elastic.serve.scaling.load import LoadObserver
from elastic.serve.scaling.ray_serve import record
from elastic.serve.served import Served
from elastic.serve.telemetry.instruments import replica_metrics, replica_records


class EncoderReplica(ReplicaLifecycle[EmbeddingService]):
    """Answers embedding and health calls; ready once every submodel has run."""

    def __init__(self, config: ServeConfig, releases_folder: Path) -> None:
        settle_process(config)
        releases = Releases(releases_folder)
        release = releases.published()
        replica = str(serve.get_replica_context().rank.rank)
        metrics, records = replica_metrics(replica), replica_records(config, replica)
        observers: list[Observer] = [metrics, *records] if metrics else [*records]
        self._load: LoadObserver | None = None
        if config.scaling is not None:
            self._load = LoadObserver(lambda: self._service.served.engine.fronts, config.scaling.window_s)
            observers.append(self._load)
        self._service = EmbeddingService.load(replace(config, run=release.run), observers, releases_folder / USAGE)
        if metrics:
            # Serve calls this constructor on the loop that serves.
            self._sampling = asyncio.create_task(metrics.keep_sampling(lambda: self._service.num_waiting))
        self._health = Health(self._service.canary, is_stuck=lambda: self._service.is_stuck)
        self._follower = Follower(
            self._service,
            releases,
            release,
            lambda other: Served.load(replace(config, run=other.run), self._service.observer),
        )
        self._max_message_bytes = config.max_message_bytes
        answer_here(self)

    def __serve_build_asgi_app__(self) -> Starlette:
        """What answers HTTP; Serve asks for it once the constructor has run (`serve.ingress()` without an app)."""
        return http_app(self._service, self._health, self._max_message_bytes)

    async def Embed(self, request: bytes, grpc_context: Context) -> pb.EmbedReply:
        """`elastic.v1.EmbeddingService/Embed`."""

        async def embed() -> pb.EmbedReply:
            self._service.check(grpc_context)  # before anything of a stranger is parsed
            return await self._service.embed(parse(pb.EmbedRequest, request), grpc_context)

        return await answer(grpc_context, pb.EmbedReply, embed())

    async def EmbedStream(
        self, requests: AsyncIterable[bytes], grpc_context: Context
    ) -> AsyncIterator[pb.EmbedStreamReply]:
        """`elastic.v1.EmbeddingService/EmbedStream`."""
        messages = parse_stream(pb.EmbedStreamRequest, requests)
        async for reply in answer_stream(grpc_context, self._service.embed_stream(messages, grpc_context)):
            yield reply

    async def Info(self, request: bytes, grpc_context: Context) -> pb.InfoReply:
        """`elastic.v1.EmbeddingService/Info`."""

        async def info() -> pb.InfoReply:
            parse(pb.InfoRequest, request)
            return self._service.info(grpc_context)

        return await answer(grpc_context, pb.InfoReply, info())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve sends to the scaler; asked for only while the number of replicas may change."""
        assert self._load is not None, "only an autoscaled deployment is asked"
        return record(self._load.load(self._service.num_waiting))
