"""One model that embeds: its weights, what can be chosen, its model thread and its decoding threads."""

import gc
from collections.abc import Iterable

from elastic.profile.device import device_fingerprint
from elastic.profile.store import load_latency, load_quality
from elastic.profile.tables import Modality
from elastic.serve.batching import Front
from elastic.serve.config import ServeConfig
from elastic.serve.engine import Engine
from elastic.serve.front import build_fronts
from elastic.serve.observer import Observer
from elastic.serve.payloads.inputs import Preparation
from elastic.serve.payloads.urls import AllowList, ImageFetcher
from elastic.serve.policies.registry import policy_maker
from elastic.serve.resident import ResidentModel
from elastic.serve.retirable import Retirable
from elastic.serve.watchdog import Watchdog


class Served(Retirable):
    """A warm model and its threads."""

    def __init__(self, name: str, model: ResidentModel, engine: Engine, preparation: Preparation) -> None:
        super().__init__(name)
        self.model, self.engine, self.preparation = model, engine, preparation

    @classmethod
    def load(cls, config: ServeConfig, observer: Observer) -> "Served":
        """Load the model of the run that the settings name, and serve it as `of` does.

        Raises:
            CheckpointError: no model there, or a damaged one.
            ProfileError: no usable table for this device.
        """
        return cls.of(ResidentModel.load(config.run, config.dtype, config.device), config, observer)

    @classmethod
    def of(cls, model: ResidentModel, config: ServeConfig, observer: Observer) -> "Served":
        """Load the tables of the run and warm every submodel up; the observer hears of every batch.

        Raises:
            ProfileError: no usable table for this device.
        """
        fronts = load_fronts(model, config)
        for modality, front in fronts.items():
            model.warm_up(modality, [level.submodel for level in front.levels], (1, front.max_batch_size))
        model.is_sane()  # the canary's submodel, and what it answers
        # Tracing leaves cycles that hold the weights, and a replica exempts what it started with from collection.
        gc.collect()
        engine = Engine(
            fronts,
            model.compute,
            policy=policy_maker(config.policy, fronts)(),
            max_waiting_items=config.max_waiting_items,
            reply_margin_ms=config.reply_margin_ms,
            watchdog=Watchdog(floor_s=config.stuck_after_s),
            on_batch=observer.batch_ran,
        )
        return cls(config.run.resolve().name, model, engine, _preparation(model, config))

    @property
    def version(self) -> str:
        """Identity of the weights."""
        return self.model.version

    def widths(self, modalities: Iterable[Modality]) -> list[int]:
        """The trained widths at which every one of these modalities was evaluated."""
        fronts = [self.engine.fronts[modality] for modality in set(modalities) if modality in self.engine.fronts]
        trained = self.model.encoder.space.embed_dims
        return [width for width in trained if all(width in front.levels[-1].quality for front in fronts)]

    @property
    def is_stuck(self) -> bool:
        """Whether a batch has run for longer than can be."""
        return self.engine.watchdog.is_stuck

    def abandon(self, error: BaseException) -> None:
        """Let every input fail that waits or is computed."""
        self.engine.abandon(error)

    async def canary(self) -> bool:
        """Whether the model still answers a fixed input correctly, in its own thread."""
        return await self.engine.run_in_model_thread(self.model.is_sane)

    def close(self) -> None:
        """Stop computing and decoding."""
        self.engine.close()
        self.preparation.close()


def load_fronts(model: ResidentModel, config: ServeConfig) -> dict[Modality, Front]:
    """What can be chosen, from the tables of the run.

    Raises:
        ProfileError: missing, of another device (unless forced), or without what is configured.
    """
    latency = load_latency(config.run, device_fingerprint(config.device), any_device=config.force_foreign_tables)
    return build_fronts(latency, load_quality(config.run), model.spaces, config)


def _preparation(model: ResidentModel, config: ServeConfig) -> Preparation:
    text = model.manifest.encoder.text
    return Preparation(
        model.manifest.preprocess.image_size,
        model.tokenizer,
        max_tokens=0 if text is None else text.max_tokens,
        max_pixels=config.max_image_pixels,
        max_text_chars=config.max_text_chars,
        num_threads=config.decode_threads,
        fetcher=_fetcher(config),
    )


def _fetcher(config: ServeConfig) -> ImageFetcher | None:
    if not config.image_url_allow:
        return None
    return ImageFetcher(AllowList.parse(config.image_url_allow), max_bytes=config.max_message_bytes)
