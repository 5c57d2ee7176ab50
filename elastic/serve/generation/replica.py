"""The Ray Serve deployment of a replica that generates: the counterpart of `elastic.serve.encoder`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

from ray import serve
from starlette.applications import Starlette

from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic.serve.access.usage import USAGE
from elastic.serve.api.decoding import parse
from elastic.serve.api.grpc import Context, answer, answer_stream
from elastic.serve.api.health import GENERATION_SERVICE, Health
from elastic.serve.api.services import answer_here
from elastic.serve.config import ServeConfig
from elastic.serve.generation.http import http_app
from elastic.serve.generation.instruments import generation_log, generation_metrics
from elastic.serve.generation.served import ServedDecoder
from elastic.serve.generation.service import GenerationService
from elastic.serve.lifecycle import ReplicaLifecycle, settle_process
from elastic.serve.rollout.follow import Follower
from elastic.serve.rollout.release import Releases


class DecoderReplica(ReplicaLifecycle[GenerationService]):
    """Answers calls to continue a text, and health calls; ready once every submodel has run."""

    def __init__(self, config: ServeConfig, releases_folder: Path) -> None:
        settle_process(config)
        releases = Releases(releases_folder)
        release = releases.published()
        replica = str(serve.get_replica_context().rank.rank)
        metrics, log = generation_metrics(replica), generation_log(config, replica)
        observers = [observer for observer in (metrics, log) if observer is not None]
        self._service = GenerationService.load(replace(config, run=release.run), observers, releases_folder / USAGE)
        if metrics:
            # Serve calls this constructor on the loop that serves.
            self._sampling = asyncio.create_task(metrics.keep_sampling(lambda: self._service.served.engine.num_running))
        self._health = Health(self._service.canary, service=GENERATION_SERVICE, is_stuck=lambda: self._service.is_stuck)
        self._follower = Follower(
            self._service,
            releases,
            release,
            lambda other: ServedDecoder.load(replace(config, run=other.run), self._service.observer),
        )
        self._max_message_bytes = config.max_message_bytes
        answer_here(self)

    def __serve_build_asgi_app__(self) -> Starlette:
        """What answers HTTP; Serve asks for it once the constructor has run (`serve.ingress()` without an app)."""
        return http_app(self._service, self._health, self._max_message_bytes)

    async def Generate(self, request: bytes, grpc_context: Context) -> AsyncIterator[pb.GenerateReply]:
        """`elastic.v1.GenerationService/Generate`."""

        async def generate() -> AsyncIterator[pb.GenerateReply]:
            self._service.check(grpc_context)  # before anything of a stranger is parsed
            async with aclosing(self._service.generate(parse(pb.GenerateRequest, request), grpc_context)) as replies:
                async for reply in replies:
                    yield reply

        async for reply in answer_stream(grpc_context, generate()):
            yield reply

    async def Info(self, request: bytes, grpc_context: Context) -> pb.GenerationInfoReply:
        """`elastic.v1.GenerationService/Info`."""

        async def info() -> pb.GenerationInfoReply:
            parse(pb.GenerationInfoRequest, request)
            return self._service.info(grpc_context)

        return await answer(grpc_context, pb.GenerationInfoReply, info())
