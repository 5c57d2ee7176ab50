import asyncio
import io
import struct
import threading
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from elastic.data.decode import decode
from elastic.data.tokenizer import train_tokenizer
from elastic.errors import InvalidRequest, RequestTooLarge
from elastic.model.preprocess import CANVAS_SCALE
from elastic.serve.payloads.inputs import Content, Preparation, modality_of

IMAGE_SIZE = 16


@pytest.fixture
def preparation() -> Preparation:
    tokenizer = train_tokenizer(["a red house", "a small cat"], 64)
    return Preparation(IMAGE_SIZE, tokenizer, max_tokens=8, max_pixels=1_000_000, max_text_chars=100)


def prepare(preparation: Preparation, *contents: Content) -> list[object]:
    return asyncio.run(preparation.prepare(contents))


def png_header(width: int, height: int) -> bytes:
    """A PNG that declares a size and holds almost no pixels: a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_images_are_prepared_as_in_evaluation(preparation: Preparation, png: bytes) -> None:
    (prepared,) = prepare(preparation, png)
    assert np.array_equal(prepared, decode(png, CANVAS_SCALE * IMAGE_SIZE))  # type: ignore[arg-type]


def where_prepared(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch, *contents: Content, at_rest: bool = False
) -> set[str]:
    """Names of the threads that have prepared these contents."""
    names: set[str] = set()
    really = preparation.prepare_one

    def noted(content: Content, field: str, *small_pixels: int) -> object:
        found = really(content, field, *small_pixels)
        names.add(threading.current_thread().name)
        return found

    monkeypatch.setattr(preparation, "prepare_one", noted)
    asyncio.run(preparation.prepare(contents, at_rest=at_rest))
    monkeypatch.undo()
    return names


def noise(side: int) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 50.0).save(file, "PNG")
    return file.getvalue()


def test_a_single_small_content_is_prepared_at_once(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (noise(64), "a red cat"):
        assert where_prepared(preparation, monkeypatch, content) == {"MainThread"}


def test_while_nobody_else_is_answered_a_larger_one_is_too(
    preparation: Preparation, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(200)  # 39 KiB
    assert where_prepared(preparation, monkeypatch, image, at_rest=True) == {"MainThread"}
    for contents in ((noise(300),), (image, image)):
        (name, *_) = where_prepared(preparation, monkeypatch, *contents, at_rest=True)
        assert name.startswith("prepare")


def test_what_is_made_of_an_image_counts_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    larger = Preparation(96, None)  # 64 x 64 pixels become 192 x 192
    assert where_prepared(larger, monkeypatch, noise(64), at_rest=True) == {"MainThread"}
    (name,) = where_prepared(larger, monkeypatch, noise(64))
    assert name.startswith("prepare")


def test_what_takes_longer_goes_to_the_threads(preparation: Preparation, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = io.BytesIO()
    Image.new("L", (900, 900)).save(flat, "PNG")  # few bytes, many pixels
    for contents in ((noise(256),), (flat.getvalue(),), (noise(64), noise(64))):
        names = where_prepared(preparation, monkeypatch, *contents)
        assert names and all(name.startswith("prepare") for name in names)


def test_texts_become_token_rows(preparation: Preparation) -> None:
    ((tokens, mask),) = prepare(preparation, "a red cat")  # type: ignore[misc]
    assert tokens.dtype == torch.int64
    assert tokens.shape == mask.shape
    assert mask.all()


def test_what_waits_for_the_threads_is_counted_with_what_would_follow_it(
    preparation: Preparation, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def expected() -> list[float]:
        found = [preparation.expected_ms(4)]
        working = asyncio.ensure_future(preparation.prepare([png] * 6))
        await asyncio.sleep(0)  # for its parts to begin
        await asyncio.sleep(0)
        found += [preparation.expected_ms(count) for count in (0, 4)]
        await working
        return [*found, preparation.expected_ms(4)]

    prepare(preparation, *[png] * 50)
    pace_ms = preparation._mean_ms
    monkeypatch.setattr("elastic.serve.payloads.inputs.PACE_SHARE", 0.0)
    at_rest, six, ten, after = asyncio.run(expected())
    assert pace_ms > 0 and (at_rest, after) == (0.0, 0.0)
    assert (six, ten) == pytest.approx((6 * pace_ms / 2, 10 * pace_ms / 2))


def test_contents_keep_their_order(preparation: Preparation, png: bytes) -> None:
    first, second, third = prepare(preparation, "a cat", png, "a red house")
    assert isinstance(second, np.ndarray)
    assert isinstance(first, tuple) and isinstance(third, tuple)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, I am text", "not a readable image; send one of PNG"),
        (b"%PDF-1.7 ...", "not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a readable image"),
        (b"\x89PNG\r\n\x1a\n broken", "not a readable image"),
        ("  ", "is empty"),
    ],
)
def test_unusable_content_is_refused_and_named(
    preparation: Preparation, png: bytes, content: Content, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as raised:
        prepare(preparation, png, content)
    assert raised.value.field.startswith("inputs[1].")
    assert "0x" not in str(raised.value)  # no memory address of an internal object


def test_a_decompression_bomb_is_refused_from_its_header(preparation: Preparation) -> None:
    with pytest.raises(InvalidRequest, match="declares 10000 x 5000 pixels, the limit is 1000000"):
        prepare(preparation, png_header(10_000, 5_000))


def test_a_limit_below_what_counts_as_small_holds_for_small_images_too() -> None:
    strict = Preparation(IMAGE_SIZE, None, max_pixels=60 * 60)
    assert prepare(strict, noise(60))
    with pytest.raises(InvalidRequest, match="declares 64 x 64 pixels, the limit is 3600"):
        prepare(strict, noise(64))


def test_a_text_above_the_limit_is_too_large(preparation: Preparation) -> None:
    with pytest.raises(RequestTooLarge) as raised:
        prepare(preparation, "x" * 101)
    assert (raised.value.size, raised.value.limit) == (101, 100)


def test_the_type_of_a_content_is_its_modality() -> None:
    assert (modality_of(b"..."), modality_of("...")) == ("image", "text")
