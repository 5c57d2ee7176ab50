"""The service behind the RPCs: read the request, hold a place, hand on what comes, explain. No ray."""

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

from elastic._pb.elastic.v1 import generation_pb2 as pb
from elastic.serve.access.gate import Caller, Gate
from elastic.serve.api.grpc import remaining_ms
from elastic.serve.api.replica import ReplicaService
from elastic.serve.config import ServeConfig
from elastic.serve.generation.engine import Job, Running
from elastic.serve.generation.messages import finish_message
from elastic.serve.generation.observer import GenerationObserver, GenerationObservers, GenerationOutcome
from elastic.serve.generation.served import ServedDecoder
from elastic.serve.generation.text import TextStream

Replies = AsyncGenerator[pb.GenerateReply, None]


class GenerationService(ReplicaService[ServedDecoder]):
    """The calls of one replica that generates."""

    def __init__(self, served: ServedDecoder, config: ServeConfig, observer: GenerationObserver, gate: Gate) -> None:
        super().__init__(served, gate)
        self._config, self.observer = config, observer

    @classmethod
    def load(
        cls, config: ServeConfig, observers: Sequence[GenerationObserver] = (), usage: Path | None = None
    ) -> "GenerationService":
        """Serve the run that the settings name, warm; the observers hear of all that happens.

        Services that name the same file for `usage` hold keys to their limits together.

        Raises:
            CheckpointError: no language model there, or a damaged one.
            ConfigError: the key file cannot be used.
        """
        observer = GenerationObservers(observers)
        return cls(ServedDecoder.load(config, observer), config, observer, Gate.of(config.api_keys, usage))

    async def generate(self, request: pb.GenerateRequest, caller: Caller | None) -> Replies:
        """What is new of the text, step by step; `caller` carries key and absolute deadline, None is this process.

        Closing it frees the sequence's place.

        Raises:
            ElasticError: whatever is wrong with the request or in its way, before the first reply or, if it is the
                deadline or the model that gives out, later.
        """
        with self._call() as served:
            engine = served.engine
            arrived_ms, key = engine.clock(), None
            job: Job | None = None
            running: Running | None = None
            error: BaseException | None = None
            try:
                with self._gate.admit(caller) as key:
                    self._check_accepting()
                    budget_ms = math.inf if caller is None else remaining_ms(caller, math.inf)
                    job = served.reading.job(request, arrived_ms, budget_ms)
                    with engine.place(job) as running:
                        async with aclosing(_replies(served, running)) as replies:
                            async for reply in replies:
                                yield reply
            except BaseException as found:
                error = found
                raise
            finally:
                outcome = GenerationOutcome(job, running, error, engine.clock() - arrived_ms, caller, key)
                self.observer.request_finished(outcome)

    def info(self, caller: Caller | None = None) -> pb.GenerationInfoReply:
        """What there is to choose from, as predicted now, and the limits.

        Raises:
            ElasticError: the caller may not call now.
        """
        with self._gate.admit(caller):
            served, config = self._served, self._config
            submodels = [
                pb.TokenSubmodelInfo(
                    submodel=str(option.submodel),
                    granularity=option.name,
                    predicted_token_ms=option.token_ms,
                    nats=option.nats,
                )
                for option in served.engine.options()
            ]
            limits = pb.GenerationLimits(
                max_tokens=served.reading.max_tokens,
                max_sequences=config.max_sequences,
                max_message_bytes=config.max_message_bytes,
                max_text_chars=config.max_text_chars,
                vocab_size=served.reading.vocab_size,
            )
            return pb.GenerationInfoReply(
                model_name=served.name, model_version=served.version, submodels=submodels, limits=limits
            )


async def _replies(served: ServedDecoder, running: Running) -> Replies:
    text = TextStream(served.reading.tokenizer, running.job.prompt, running.job.stop)
    num_told = 0
    async with aclosing(running.steps()) as steps:
        async for step in steps:
            (tokens,), (finish,) = step.tokens, step.finished
            piece = ""
            for count, token in enumerate(tokens, 1):
                piece += text.push(token)
                if text.is_stopped:
                    tokens, finish = tokens[:count], "stopped"
                    break
            num_told += len(tokens)
            reply = pb.GenerateReply(text=piece, token_ids=tokens)
            if finish is not None:
                reply.text += text.flush()
                reply.finish.CopyFrom(finish_message(running, finish, num_told, served.version, served.reading.space))
            yield reply
            if finish is not None:
                return
