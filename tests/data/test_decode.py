import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from elastic.data.decode import TooManyPixels, decode, decode_all
from elastic.errors import DataError

from .drawing import BROKEN, encode, plain


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header_of(width: int, height: int) -> bytes:
    """A PNG that declares a size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_colour_is_multiplied_by_alpha():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, 128
    canvas = decode(encode(pixels), 8)
    assert (canvas[0] == round(200 * 128 / 255)).all()
    assert (canvas[3] == 128).all()


def test_an_opaque_square_keeps_its_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(decode(encode(pixels), 16)[:3], pixels.transpose(2, 0, 1))


def test_the_aspect_ratio_is_kept_and_the_rest_is_transparent():
    canvas = decode(encode(np.full((10, 40, 3), 90, np.uint8)), 20)
    covered = canvas[3] > 0
    assert covered.any(axis=1).sum() == 5
    assert covered.any(axis=0).all()
    assert (canvas[:3, ~covered] == 0).all()


def test_resizing_keeps_colour_below_alpha():
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 4), np.uint8)
    canvas = decode(encode(pixels), 16)
    assert (canvas[:3] <= canvas[3]).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "CMYK", "I;16", "1"])
def test_every_mode_becomes_rgba(mode: str):
    image = Image.new("L", (12, 12), 200)
    image = Image.fromarray(np.full((12, 12), 200 * 257, np.uint16)) if mode == "I;16" else image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    canvas = decode(buffer.getvalue(), 12)
    expected = 255 if mode == "1" else 200
    assert abs(int(canvas[0, 6, 6]) - expected) <= 1
    assert (canvas[3] == 255).all()


def test_a_bomb_is_refused_from_its_header():
    with pytest.raises(TooManyPixels, match="declares 9000 x 9000 pixels, the limit is 1000000"):
        decode(png_header_of(9000, 9000), 16, max_pixels=1_000_000)


@pytest.mark.parametrize("size", [12_000, 40_000])
def test_a_bomb_beyond_the_limits_of_pillow_is_refused_too(size: int):
    with pytest.raises(TooManyPixels, match="declares too many pixels"):
        decode(png_header_of(size, size), 16)


@pytest.mark.parametrize("data", [b"", b"hello", BROKEN, plain(3)[:60], b"GIF89a", b"\xff\xd8\xff\xe0"])
def test_what_is_not_an_image_is_one_kind_of_error(data: bytes):
    with pytest.raises(DataError):
        decode(data, 16)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says what it finds odd in a damaged file
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_files_never_raise_anything_else(kind: str):
    pixels = np.random.default_rng(1).integers(0, 256, (24, 24, 3), np.uint8)
    whole = encode(pixels, kind)
    assert decode(whole, 24).shape == (4, 24, 24)
    dice = random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole[: dice.randrange(4, len(whole))] if dice.random() < 0.5 else whole)
        for _ in range(dice.randrange(4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        try:
            canvas = decode(bytes(damaged), 24)
        except DataError:
            continue
        assert canvas.shape == (4, 24, 24)


def test_broken_images_leave_a_transparent_canvas_and_a_mark():
    canvases, broken = decode_all([plain(7), BROKEN, plain(9)], 16)
    assert broken.tolist() == [False, True, False]
    assert canvases[0, 0, 0, 0] == 7
    assert (canvases[1] == 0).all()


def test_a_colour_that_an_opaque_format_declares_transparent_is():
    pixels = np.full((8, 8, 3), 200, np.uint8)
    pixels[:4] = (10, 20, 30)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", transparency=(10, 20, 30))
    canvas = decode(buffer.getvalue(), 8)
    assert not canvas[:, :4].any()
    assert (canvas[3, 4:] == 255).all() and (canvas[:3, 4:] == 200).all()


def test_orientation_from_a_camera_is_applied():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:4] = 255  # bright at the top
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise for viewing
    Image.fromarray(pixels).save(buffer, "PNG", exif=exif)
    canvas = decode(buffer.getvalue(), 16)
    assert canvas[0, :, 14].min() > 200
    assert canvas[0, :, 2].max() < 50
