"""From what a request carries to what the model takes, in a small pool of threads beside the model's.

What takes less time than the way to a thread and back is done at once, on the event loop, and a little more while
nobody else is answered. Limits are checked before anything is decoded; an image's declared size is read from its
header, so a decompression bomb costs nothing. The path from bytes to pixels is the one that evaluation uses.
"""

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from elastic.data.decode import FORMATS, TooManyPixels, decode
from elastic.data.tokenizer import Tokenizer
from elastic.errors import DataError, InvalidRequest, RequestTooLarge
from elastic.model.preprocess import CANVAS_SCALE
from elastic.profile.tables import Modality
from elastic.serve.payloads.urls import ImageFetcher, ImageUrl

PACE_SHARE = 0.1
"""What one content changes of the mean time that they take."""

Content = bytes | str | ImageUrl
"""An encoded image, a text, or where to read an image."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of a single image or text that is prepared on the event loop."""

    num_bytes: int
    num_pixels: int
    """Of the image and its canvas together."""
    num_chars: int

    def holds(self, content: Content, canvas_pixels: int) -> bool:
        """Whether it is inside them, as far as can be told before its header is read."""
        if isinstance(content, str):
            return len(content) <= self.num_chars
        return isinstance(content, bytes) and len(content) <= self.num_bytes and canvas_pixels < self.num_pixels


SHORT = Bounds(num_bytes=16 * 2**10, num_pixels=2 * 128**2, num_chars=256)
"""What takes a few tenths of a millisecond."""
BEARABLE = Bounds(num_bytes=64 * 2**10, num_pixels=2 * 384**2, num_chars=256)
"""What takes up to 3 ms, which delay nobody while the server is at rest: the way to a thread and back takes a tenth of
them, and more when a large model has just emptied the caches."""


def modality_of(content: Content) -> Modality:
    """Which tower embeds it."""
    return "text" if isinstance(content, str) else "image"


class Preparation:
    """Turns contents into what the model takes: uint8 canvases of images, `(tokens, mask)` rows of texts."""

    formats = FORMATS

    def __init__(
        self,
        image_size: int,
        tokenizer: Tokenizer | None,
        *,
        max_tokens: int = 0,
        max_pixels: int = 32_000_000,
        max_text_chars: int = 10_000,
        num_threads: int = 2,
        fetcher: ImageFetcher | None = None,
    ) -> None:
        self._canvas_size = CANVAS_SCALE * image_size
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._max_pixels = max_pixels
        self._max_text_chars = max_text_chars
        self._fetcher = fetcher
        self._num_threads = num_threads
        self._threads = ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix="prepare")
        self._num_in_threads, self._mean_ms = 0, 0.0

    async def prepare(
        self, contents: Sequence[Content], limit_s: float = math.inf, *, at_rest: bool = False
    ) -> list[object]:
        """Model inputs in order; images by URL must have arrived within `limit_s`.

        `at_rest` says that nobody else is being answered.

        Raises:
            InvalidRequest: one is empty, not an image, has too many pixels or cannot be read from its URL; the field
                names which.
            RequestTooLarge: one has more characters or bytes than allowed.
        """
        bounds = BEARABLE if at_rest else SHORT
        canvas_pixels = self._canvas_size**2
        if len(contents) == 1 and bounds.holds(contents[0], canvas_pixels):
            with suppress(TooManyPixels):
                max_pixels = min(bounds.num_pixels - canvas_pixels, self._max_pixels)
                return [self.prepare_one(contents[0], "inputs[0]", max_pixels)]
        calls = [
            asyncio.ensure_future(self._prepare(content, f"inputs[{index}]", limit_s))
            for index, content in enumerate(contents)
        ]
        try:
            return list(await asyncio.gather(*calls))
        finally:
            # One that fails ends the request, so nothing more needs to be fetched.
            for call in calls:
                call.cancel()

    def expected_ms(self, num_contents: int) -> float:
        """How long it would take until so many more are prepared, at the recent pace of the threads; those that are at
        rest promise nothing, so that a slow one is measured again."""
        if not self._num_in_threads:
            return 0.0
        return (self._num_in_threads + num_contents) * self._mean_ms / self._num_threads

    async def _prepare(self, content: Content, field: str, limit_s: float) -> object:
        if isinstance(content, ImageUrl):
            if self._fetcher is None:
                raise InvalidRequest(f"{field}.image_url", "this server reads no URLs; send the image itself")
            content = await self._fetcher.fetch(content, f"{field}.image_url", limit_s)
        self._num_in_threads += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._timed, content, field)
        finally:
            self._num_in_threads -= 1

    def _timed(self, content: bytes | str, field: str) -> object:
        began_s = time.perf_counter()
        try:
            return self.prepare_one(content, field)
        finally:
            self._mean_ms += PACE_SHARE * (1000 * (time.perf_counter() - began_s) - self._mean_ms)

    def prepare_one(self, content: Content, field: str, small_pixels: int | None = None) -> object:
        """The model input of one content; errors name `field`.

        Raises:
            TooManyPixels: an image has more than `small_pixels`, which says nothing about whether it may.
            InvalidRequest, RequestTooLarge: as in `prepare`.
        """
        assert not isinstance(content, ImageUrl), "is read first"
        return self._image(content, field, small_pixels) if isinstance(content, bytes) else self._text(content, field)

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _image(self, encoded: bytes, field: str, small_pixels: int | None) -> np.ndarray:
        if not encoded:
            raise InvalidRequest(f"{field}.image", "is empty")
        max_pixels = self._max_pixels if small_pixels is None else small_pixels
        try:
            return decode(encoded, self._canvas_size, max_pixels)
        except DataError as error:
            if small_pixels is not None and isinstance(error, TooManyPixels):
                raise
            # Pillow's own words stand in parentheses, and can hold memory addresses.
            problem = error.problem.partition(" (")[0]
            raise InvalidRequest(f"{field}.image", f"{problem}; {error.advice}") from error

    def _text(self, text: str, field: str) -> tuple[torch.Tensor, torch.Tensor]:
        if not text.strip():
            raise InvalidRequest(f"{field}.text", "is empty")
        if len(text) > self._max_text_chars:
            raise RequestTooLarge(f"{field}.text", len(text), self._max_text_chars)
        assert self._tokenizer is not None, "texts are refused before preparation when there is no text tower"
        tokens, mask = self._tokenizer.encode([text], self._max_tokens)
        return torch.as_tensor(tokens[0]), torch.as_tensor(mask[0])
