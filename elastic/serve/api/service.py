"""The service behind the RPCs: read the request, prepare, embed, explain. No ray, so tests run it in-process."""

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.profile.device import device_fingerprint
from elastic.profile.tables import Modality
from elastic.serve.access.gate import Caller, Gate
from elastic.serve.api.grpc import (
    MODALITIES,
    Limits,
    embed_reply,
    failure_message,
    read_contents,
    read_slo,
    remaining_ms,
    status_of,
)
from elastic.serve.api.replica import ReplicaService
from elastic.serve.config import ServeConfig
from elastic.serve.engine import Computed, Engine, Request
from elastic.serve.observer import Observer, Observers, Outcome
from elastic.serve.payloads.inputs import modality_of
from elastic.serve.payloads.outputs import read_outputs, with_width_of
from elastic.serve.served import Served


class EmbeddingService(ReplicaService[Served]):
    """The calls of one replica that embeds."""

    def __init__(self, served: Served, config: ServeConfig, observer: Observer, gate: Gate) -> None:
        super().__init__(served, gate)
        self._config, self.observer = config, observer
        self._limits = Limits(config.max_items_per_call, config.default_latency_ms)

    @classmethod
    def load(
        cls, config: ServeConfig, observers: Sequence[Observer] = (), usage: Path | None = None
    ) -> "EmbeddingService":
        """Serve the run that the settings name, warm; the observers hear of all that happens.

        Services that name the same file for `usage` hold keys to their limits together.

        Raises:
            CheckpointError: no model there, or a damaged one.
            ProfileError: no usable table for this device.
            ConfigError: the key file cannot be used.
        """
        observer = Observers(observers)
        return cls(Served.load(config, observer), config, observer, Gate.of(config.api_keys, usage))

    async def embed(self, request: pb.EmbedRequest, caller: Caller | None, *, in_stream: bool = False) -> pb.EmbedReply:
        """Embed every input; `caller` carries the client's key and absolute deadline, if it sent them.

        None calls from this process. In a stream, what the caller sent along is the stream's: its key counts for every
        request, its deadline for none.

        Raises:
            ElasticError: whatever is wrong with the request or in its way; `grpc.STATUS` says what becomes of it.
        """
        with self._call() as served:
            return await self._embed(served, request, caller, in_stream)

    async def _embed(
        self, served: Served, request: pb.EmbedRequest, caller: Caller | None, in_stream: bool
    ) -> pb.EmbedReply:
        engine, asked, key = served.engine, None, None
        arrived_ms = engine.clock()
        prepared: list[object] = []

        async def prepare() -> Sequence[object]:
            assert asked is not None
            left_s = (asked.deadline_ms - engine.clock()) / 1000
            at_rest = engine.num_accepted == len(contents)
            prepared.extend(await served.preparation.prepare(contents, left_s, at_rest=at_rest))
            return prepared

        try:
            with self._gate.admit(caller) as key:
                self._check_accepting()
                contents = read_contents(request, self._limits)
                modalities: tuple[Modality, ...] = tuple(modality_of(content) for content in contents)
                outputs = read_outputs(request, served.widths(modalities))
                slo = with_width_of(outputs, read_slo(request, self._limits))
                told = None if in_stream else caller
                budget_ms = slo.latency_ms if told is None else remaining_ms(told, slo.latency_ms)
                asked = Request(
                    modalities=modalities,
                    slo=slo,
                    arrived_ms=arrived_ms,
                    deadline_ms=arrived_ms + budget_ms,
                )
                computed = await engine.embed(asked, prepare, served.preparation.expected_ms(len(contents)))
        except BaseException as error:
            self._tell(engine, asked, arrived_ms, (caller, key), error=error)
            raise
        outcome = self._tell(engine, asked, arrived_ms, (caller, key), computed)
        reply = embed_reply(computed, outputs, served.version, outcome.total_ms, outcome.slack_ms)
        for embedding, modality, item in zip(reply.embeddings, modalities, prepared, strict=True):
            embedding.explanation.num_tokens = served.model.num_tokens(modality, item)
        return reply

    async def embed_stream(
        self, requests: AsyncIterable[pb.EmbedStreamRequest], caller: Caller | None = None
    ) -> AsyncIterator[pb.EmbedStreamReply]:
        """Answers as they become ready; a request that fails does not end the stream.

        Raises:
            Unauthenticated: the caller may not call; later, when its key is removed, every further request fails so.
        """
        self._gate.check(caller)
        answers: asyncio.Queue[pb.EmbedStreamReply | None] = asyncio.Queue()
        places = asyncio.Semaphore(self._config.max_stream_requests)
        working: set[asyncio.Task[None]] = set()

        async def work(message: pb.EmbedStreamRequest) -> None:
            answers.put_nowait(await self._stream_answer(message, caller))
            places.release()

        async def read() -> None:
            try:
                async for message in requests:
                    # Reading stops here while the stream has its share, so the client feels back-pressure.
                    await places.acquire()
                    task = asyncio.create_task(work(message))
                    working.add(task)
                    task.add_done_callback(working.discard)
                await asyncio.gather(*working)
            finally:
                answers.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (reply := await answers.get()) is not None:
                yield reply
            await reader
        finally:
            for task in [reader, *working]:
                task.cancel()

    def info(self, caller: Caller | None = None) -> pb.InfoReply:
        """What there is to choose from, as predicted now, and the limits.

        Raises:
            ElasticError: the caller may not call now.
        """
        with self._gate.admit(caller):
            return self._info()

    def _info(self) -> pb.InfoReply:
        config, served, costs = self._config, self._served, self._served.engine.costs()
        widths = served.model.encoder.space.embed_dims
        submodels = [
            pb.SubmodelInfo(
                modality=MODALITIES[modality],
                submodel=str(level.submodel),
                granularity=level.name,
                predicted_ms=costs.ms(modality, index, 1),
                quality=[level.quality.get(width, 0.0) for width in widths],
            )
            for modality, front in served.engine.fronts.items()
            for index, level in enumerate(front.levels)
        ]
        return pb.InfoReply(
            model_name=served.name,
            model_version=served.version,
            device=str(device_fingerprint(config.device)),
            modalities=[MODALITIES[modality] for modality in served.engine.fronts],
            embed_dims=widths,
            submodels=submodels,
            limits=pb.Limits(
                max_items_per_call=config.max_items_per_call,
                max_message_bytes=config.max_message_bytes,
                max_image_pixels=config.max_image_pixels,
                max_text_chars=config.max_text_chars,
                max_waiting_items=config.max_waiting_items,
                default_latency_ms=config.default_latency_ms,
            ),
            image_formats=served.preparation.formats,
        )

    @property
    def num_waiting(self) -> int:
        """Inputs that wait for the model or are being decoded for it."""
        return self._served.engine.num_waiting

    def _tell(
        self,
        engine: Engine,
        asked: Request | None,
        arrived_ms: float,
        sender: tuple[Caller | None, str | None],
        computed: Sequence[Computed] = (),
        error: BaseException | None = None,
    ) -> Outcome:
        now_ms = engine.clock()
        slack_ms = math.nan if asked is None else asked.deadline_ms - now_ms
        outcome = Outcome(asked, computed, error, now_ms - arrived_ms, slack_ms, *sender)
        self.observer.request_finished(outcome)
        return outcome

    async def _stream_answer(self, message: pb.EmbedStreamRequest, caller: Caller | None) -> pb.EmbedStreamReply:
        (outcome,) = await asyncio.gather(self.embed(message.request, caller, in_stream=True), return_exceptions=True)
        if isinstance(outcome, pb.EmbedReply):
            return pb.EmbedStreamReply(id=message.id, reply=outcome)
        if not isinstance(outcome, Exception):
            raise outcome
        return pb.EmbedStreamReply(id=message.id, failure=failure_message(status_of(outcome)))
