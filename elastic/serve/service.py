"""The service behind the RPCs: read the request, prepare, embed, explain. No ray, so tests run it in-process."""

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path

from elastic._pb.elastic.v1 import embedding_pb2 as pb
from elastic.profile.device import device_fingerprint
from elastic.profile.store import load_latency, load_quality
from elastic.profile.tables import Modality
from elastic.serve.batching import Front
from elastic.serve.config import ServeConfig
from elastic.serve.engine import Computed, Engine, Request
from elastic.serve.front import build_fronts
from elastic.serve.grpc import (
    MODALITIES,
    Context,
    Limits,
    embed_reply,
    failure_message,
    read_contents,
    read_slo,
    remaining_ms,
    status_of,
)
from elastic.serve.inputs import Preparation, modality_of
from elastic.serve.observer import Observer, Observers, Outcome
from elastic.serve.resident import ResidentModel


def load_fronts(model: ResidentModel, config: ServeConfig) -> dict[Modality, Front]:
    """What can be chosen, from the tables of the run.

    Raises:
        ProfileError: missing, of another device (unless forced), or without what is configured.
    """
    latency = load_latency(config.run, device_fingerprint(), any_device=config.force_foreign_tables)
    return build_fronts(latency, load_quality(config.run), model.spaces, config)


class EmbeddingService:
    """One replica: the resident model, its engine and its decoding threads."""

    def __init__(
        self,
        model: ResidentModel,
        engine: Engine,
        preparation: Preparation,
        config: ServeConfig,
        observer: Observer,
    ) -> None:
        self._model, self._engine, self._preparation, self._config = model, engine, preparation, config
        self._observer = observer
        self._limits = Limits(config.max_items_per_call, config.default_latency_ms)

    @classmethod
    def load(cls, config: ServeConfig, observers: Sequence[Observer] = ()) -> "EmbeddingService":
        """Load the model and its tables and warm every submodel up; the observers hear of all that happens.

        Raises:
            CheckpointError: no model there, or a damaged one.
            ProfileError: no usable table for this device.
        """
        model = ResidentModel.load(config.run, config.dtype)
        fronts = load_fronts(model, config)
        for modality, front in fronts.items():
            model.warm_up(modality, [level.submodel for level in front.levels], (1, front.max_batch_size))
        text = model.manifest.encoder.text
        preparation = Preparation(
            model.manifest.preprocess,
            model.tokenizer,
            max_tokens=0 if text is None else text.max_tokens,
            max_pixels=config.max_image_pixels,
            max_text_chars=config.max_text_chars,
            num_threads=config.decode_threads,
        )
        observer = Observers(observers)
        engine = Engine(
            fronts,
            model.compute,
            max_waiting_items=config.max_waiting_items,
            reply_margin_ms=config.reply_margin_ms,
            on_batch=observer.batch_ran,
        )
        return cls(model, engine, preparation, config, observer)

    async def embed(self, request: pb.EmbedRequest, context: Context | None) -> pb.EmbedReply:
        """Embed every input; `context` carries the client's absolute deadline, if it sent one.

        Raises:
            ElasticError: whatever is wrong with the request or in its way; `grpc.STATUS` says what becomes of it.
        """
        arrived_ms = self._engine.clock()
        asked: Request | None = None
        try:
            slo = read_slo(request, self._limits)
            contents = read_contents(request, self._limits)
            budget_ms = slo.latency_ms if context is None else remaining_ms(context, slo.latency_ms)
            asked = Request(
                modalities=tuple(modality_of(content) for content in contents),
                slo=slo,
                arrived_ms=arrived_ms,
                deadline_ms=arrived_ms + budget_ms,
            )
            computed = await self._engine.embed(asked, lambda: self._preparation.prepare(contents))
        except BaseException as error:
            self._tell(asked, arrived_ms, (), error)
            raise
        outcome = self._tell(asked, arrived_ms, computed, None)
        return embed_reply(computed, self._model.version, outcome.total_ms, outcome.slack_ms)

    async def embed_stream(self, requests: AsyncIterable[pb.EmbedStreamRequest]) -> AsyncIterator[pb.EmbedStreamReply]:
        """Answers as they become ready; a request that fails does not end the stream."""
        answers: asyncio.Queue[pb.EmbedStreamReply | None] = asyncio.Queue()
        places = asyncio.Semaphore(self._config.max_stream_requests)
        working: set[asyncio.Task[None]] = set()

        async def work(message: pb.EmbedStreamRequest) -> None:
            answers.put_nowait(await self._stream_answer(message))
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

    def info(self) -> pb.InfoReply:
        """What there is to choose from, as predicted now, and the limits."""
        config, costs = self._config, self._engine.costs()
        widths = self._model.encoder.space.embed_dims
        submodels = [
            pb.SubmodelInfo(
                modality=MODALITIES[modality],
                submodel=str(level.submodel),
                granularity=level.name,
                predicted_ms=costs.ms(modality, index, 1),
                quality=[level.quality.get(width, 0.0) for width in widths],
            )
            for modality, front in self._engine.fronts.items()
            for index, level in enumerate(front.levels)
        ]
        return pb.InfoReply(
            model_name=Path(config.run).resolve().name,
            model_version=self._model.version,
            device=str(device_fingerprint()),
            modalities=[MODALITIES[modality] for modality in self._engine.fronts],
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
            image_formats=self._preparation.formats,
        )

    async def canary(self) -> bool:
        """Whether the model still answers a fixed input correctly, in its own thread."""
        return await self._engine.run_in_model_thread(self._model.is_sane)

    def close(self) -> None:
        """Stop computing and decoding."""
        self._engine.close()
        self._preparation.close()

    def _tell(
        self, asked: Request | None, arrived_ms: float, computed: Sequence[Computed], error: BaseException | None
    ) -> Outcome:
        now_ms = self._engine.clock()
        slack_ms = math.nan if asked is None else asked.deadline_ms - now_ms
        outcome = Outcome(asked, computed, error, now_ms - arrived_ms, slack_ms)
        self._observer.request_finished(outcome)
        return outcome

    async def _stream_answer(self, message: pb.EmbedStreamRequest) -> pb.EmbedStreamReply:
        (outcome,) = await asyncio.gather(self.embed(message.request, None), return_exceptions=True)
        if isinstance(outcome, pb.EmbedReply):
            return pb.EmbedStreamReply(id=message.id, reply=outcome)
        if not isinstance(outcome, Exception):
            raise outcome
        return pb.EmbedStreamReply(id=message.id, failure=failure_message(status_of(outcome)))
