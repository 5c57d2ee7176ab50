"""Turns a planned shard into pixels and tokens; the same function runs in a test, a worker and a Ray actor.

Reading, decoding, augmenting and tokenizing are all here; where it runs, and how far ahead, is `feed`'s and
`pipeline`'s business. Broken images are replaced by a rule that depends on nothing but the plan and the files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8

from elastic.data.augment import augment, draw_views
from elastic.data.catalog import NO_CAPTION_ID, Catalog, StreamRows
from elastic.data.config import DataConfig
from elastic.data.decode import decode_all
from elastic.data.plan import Shard
from elastic.data.source import Source
from elastic.data.tokenizer import Tokenizer
from elastic.errors import DataError

# What separates the random choices of a step's seed from each other.
_PURPOSE_CAPTION = 1


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
class ShardArrays:
    """One worker's part of a step, ready to be moved between processes. `views` counts images times their views."""

    step: int
    stream: int
    images: UInt8[np.ndarray, "views 3 size size"]
    places: Int[np.ndarray, " images"]
    """What is really shown, after broken images were replaced."""
    tokens: Int[np.ndarray, "captions length"]
    """Empty where the stream has no captions or there is no tokenizer."""
    num_tokens: Int[np.ndarray, " captions"]
    """Tokens of each caption; the rest of its row is padding."""
    caption_index: Int[np.ndarray, " captioned"]
    """Row of `tokens` of each image; empty where there are none."""
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
        views_per_image = self._config.streams[planned.stream].views_per_image
        # Drawn for the whole batch, so that a view does not depend on the number of workers.
        views = draw_views(self._config.augment, len(planned.places) * views_per_image, planned.seed)
        mine = views.part(shard.start * views_per_image, shard.stop * views_per_image)
        images = augment(torch.from_numpy(canvases), self._config.image_size, mine)
        texts, caption_index = self._captions(planned.stream, places, planned.seed)
        tokens, num_tokens = self._tokens(texts)
        return ShardArrays(
            step=planned.step,
            stream=planned.stream,
            images=images.numpy(),
            places=places,
            tokens=tokens,
            num_tokens=num_tokens,
            caption_index=caption_index,
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

    def _captions(self, stream: int, places: np.ndarray, seed: int) -> tuple[list[str], np.ndarray]:
        """Distinct texts and which one each image has; empty where the stream has none or nothing reads them."""
        rows = self._catalog.streams[stream]
        if self._tokenizer is None or not rows.has_captions:
            return [], np.empty(0, np.int64)
        probability = self._config.streams[stream].synthetic_caption_probability
        # Images of one caption share one text, or each would be a false negative of the other. A row without a
        # caption id is alone; its key lies behind all ids.
        ids = rows.caption_ids[places]
        keys = np.where(ids == NO_CAPTION_ID, len(rows) + places, ids)
        text_of: dict[int, str] = {}
        for key, place in zip(keys.tolist(), places.tolist(), strict=True):
            if key not in text_of:
                random = np.random.default_rng((seed, _PURPOSE_CAPTION, key))
                text_of[key] = choose_caption(rows, place, probability, random)
        texts = list(dict.fromkeys(text_of.values()))
        index = {text: number for number, text in enumerate(texts)}
        return texts, np.array([index[text_of[key]] for key in keys.tolist()], np.int64)

    def _tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if self._tokenizer is None or not texts:
            return np.empty((0, 0), np.int64), np.empty(0, np.int64)
        tokens, mask = self._tokenizer.encode(texts, self._max_tokens)
        return tokens.numpy(), mask.sum(dim=1).numpy()


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
