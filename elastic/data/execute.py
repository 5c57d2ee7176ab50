"""Turns a planned shard into pixels and tokens; the same function runs in a test, a worker and a Ray actor.

Reading, decoding, augmenting and tokenizing are all here; where it runs, and how far ahead, is `feed`'s and
`pipeline`'s business. Broken images are replaced by a rule that depends on nothing but the plan and the files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8

from elastic.data.augment import AugmentConfig, augment, draw_views
from elastic.data.catalog import NO_CAPTION_ID, Catalog, StreamRows
from elastic.data.config import DataConfig, StreamConfig
from elastic.data.decode import decode_all
from elastic.data.plan import Shard
from elastic.data.source import Source
from elastic.data.tokenizer import Tokenizer
from elastic.errors import DataError

# What separates the random choices of a step's seed from each other.
_PURPOSE_CAPTION, _PURPOSE_LOCAL, _PURPOSE_SYNTHETIC = 1, 2, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """A stream's canvases, decoded once; parts lie wherever they were decoded."""

    canvases: Sequence[UInt8[np.ndarray, "_ 4 size size"]]
    """Parts of equal length but the last."""
    broken: Bool[np.ndarray, " rows"]

    def take(self, places: Int[np.ndarray, " images"]) -> UInt8[np.ndarray, "images 4 size size"]:
        """Canvases by place."""
        parts, offsets = np.divmod(places, len(self.canvases[0]))
        out = np.empty((len(places), *self.canvases[0].shape[1:]), np.uint8)
        for index in range(len(places)):
            out[index] = self.canvases[parts[index]][offsets[index]]
        return out


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionArrays:
    """The distinct captions of a shard; see `elastic.batch.Captions`."""

    tokens: Int[np.ndarray, "captions length"]
    num_tokens: Int[np.ndarray, " captions"]
    """Tokens of each caption; the rest of its row is padding."""
    index: Int[np.ndarray, " images"]
    """Row of `tokens` of each image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardArrays:
    """One worker's part of a step, ready to be moved between processes. `views` counts images times their views."""

    step: int
    stream: int
    images: UInt8[np.ndarray, "views 3 size size"]
    places: Int[np.ndarray, " images"]
    """What is really shown, after broken images were replaced."""
    local_images: UInt8[np.ndarray, "locals 3 small small"] | None
    """Small crops, those of one view adjacent."""
    captions: CaptionArrays | None
    synthetic_captions: CaptionArrays | None
    """Only where the stream keeps both kinds apart."""
    num_read: int
    """Images read, replacements included."""
    num_broken: int


class Executor:
    """Executes shards of one run's plan."""

    def __init__(
        self,
        config: DataConfig,
        catalog: Catalog,
        sources: Sequence[Source],
        tokenizer: Tokenizer | None,
        max_tokens: int,
        held: Sequence[Held | None],
    ) -> None:
        self._config, self._catalog, self._sources = config, catalog, sources
        self._tokenizer, self._max_tokens, self._held = tokenizer, max_tokens, held

    def execute(self, shard: Shard) -> ShardArrays:
        """Read, decode, augment and tokenize.

        Raises:
            DataError: a source became unreadable, or a stream has no readable image left.
        """
        planned = shard.planned
        canvases, places, num_broken = self._canvases(planned.stream, shard.places)
        pixels = torch.from_numpy(canvases)
        stream = self._config.streams[planned.stream]
        augmented = stream.augment or self._config.augment
        captions, synthetic_captions = self._captions(planned.stream, places, planned.seed)
        return ShardArrays(
            step=planned.step,
            stream=planned.stream,
            images=_views(pixels, shard, augmented, self._config.image_size, stream.views_per_image, planned.seed),
            places=places,
            local_images=_local_views(pixels, shard, stream),
            captions=captions,
            synthetic_captions=synthetic_captions,
            num_read=len(places) + num_broken,
            num_broken=num_broken,
        )

    def _canvases(self, stream: int, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Readable canvases, the places they are of, and how many broken ones were met on the way."""
        held = self._held[stream]
        places, num_broken = places.copy(), 0
        canvases, broken = self._read(stream, places, held)
        for index in np.flatnonzero(broken):
            for candidate in replacements(self._catalog.streams[stream], int(places[index])):
                num_broken += 1
                canvas, still_broken = self._read(stream, np.array([candidate]), held)
                if not still_broken[0]:
                    canvases[index], places[index] = canvas[0], candidate
                    break
            else:
                name = self._config.streams[stream].source
                raise DataError(name, "has no readable image left", "run `elastic data check` on it")
        return canvases, places, num_broken

    def _read(self, stream: int, places: np.ndarray, held: Held | None) -> tuple[np.ndarray, np.ndarray]:
        if held is not None:
            return held.take(places), held.broken[places]
        row_ids = self._catalog.streams[stream].row_ids[places]
        encoded = self._sources[stream].read_images(row_ids)
        return decode_all(encoded, self._config.canvas_size, self._config.max_pixels)

    def _captions(
        self, stream: int, places: np.ndarray, seed: int
    ) -> tuple[CaptionArrays | None, CaptionArrays | None]:
        """What each image is described by: one caption of either kind, or one of each kind."""
        rows = self._catalog.streams[stream]
        if self._tokenizer is None:
            return None, None
        config = self._config.streams[stream]
        if config.captions == "one":
            share = config.synthetic_caption_probability
            return self._encode(rows, places, seed, share) if rows.has_captions else None, None
        written = self._encode(rows, places, seed, 0.0) if rows.has_written_captions else None
        seed = _derive(seed, _PURPOSE_SYNTHETIC)
        return written, self._encode(rows, places, seed, 1.0) if rows.has_synthetic_captions else None

    def _encode(self, rows: StreamRows, places: np.ndarray, seed: int, synthetic_share: float) -> CaptionArrays:
        assert self._tokenizer is not None
        # Images of one caption share one text, or each would be a false negative of the other. A row without a
        # caption id is alone; its key lies behind all ids.
        ids = rows.caption_ids[places]
        keys = np.where(ids == NO_CAPTION_ID, len(rows) + places, ids)
        text_of: dict[int, str] = {}
        for key, place in zip(keys.tolist(), places.tolist(), strict=True):
            if key not in text_of:
                random = np.random.default_rng((seed, _PURPOSE_CAPTION, key))
                text_of[key] = choose_caption(rows, place, synthetic_share, random)
        texts = list(dict.fromkeys(text_of.values()))
        row_of = {text: number for number, text in enumerate(texts)}
        tokens, mask = self._tokenizer.encode(texts, self._max_tokens)
        return CaptionArrays(
            tokens=tokens.numpy(),
            num_tokens=mask.sum(dim=1).numpy(),
            index=np.array([row_of[text_of[key]] for key in keys.tolist()], np.int64),
        )


def _derive(seed: int, purpose: int) -> int:
    return int(np.random.default_rng((seed, purpose)).integers(2**63))


def _views(
    pixels: torch.Tensor, shard: Shard, config: AugmentConfig, size: int, per_image: int, seed: int
) -> UInt8[np.ndarray, "views 3 size size"]:
    """A worker's views. Drawn for the whole batch, so that a view does not depend on the number of workers."""
    views = draw_views(config, len(shard.planned.places) * per_image, seed)
    return augment(pixels, size, views.part(shard.start * per_image, shard.stop * per_image)).numpy()


def _local_views(
    pixels: torch.Tensor, shard: Shard, stream: StreamConfig
) -> UInt8[np.ndarray, "locals 3 size size"] | None:
    crops = stream.local_crops
    if crops is None:
        return None
    seed = _derive(shard.planned.seed, _PURPOSE_LOCAL)
    return _views(pixels, shard, crops.augment, crops.image_size, stream.views_per_image * crops.count, seed)


def replacements(rows: StreamRows, place: int) -> Iterator[int]:
    """Rows to show instead of a broken one: the next of its class, round, then the next of the stream, round."""
    for candidates in (rows.places_like(place), np.arange(len(rows))):
        behind = int(np.searchsorted(candidates, place, side="right"))
        for candidate in np.roll(candidates, -behind):
            if candidate != place:
                yield int(candidate)


def choose_caption(rows: StreamRows, place: int, probability: float, random: np.random.Generator) -> str:
    """A synthetic caption of a row with this probability, else its caption; whichever it has if it lacks one."""
    synthetic = [text for text in rows.synthetic_captions[place].as_py() or () if text is not None]
    caption = rows.captions[place].as_py()
    if synthetic and (caption is None or random.random() < probability):
        return synthetic[int(random.integers(len(synthetic)))]
    assert caption is not None, f"row {place} of stream {rows.name} has no caption"
    return caption
