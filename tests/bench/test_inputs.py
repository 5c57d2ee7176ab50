"""The inputs of a load are the right kinds in the right shares, and are there before it starts."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elastic.bench.inputs import NUM_CONTENTS, contents
from elastic.errors import ConfigError, DataError


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_icons_are_images_that_decode_and_do_not_repeat():
    found = contents(None, 0.0, rng())
    assert len(found) == NUM_CONTENTS
    assert len({item for item in found if isinstance(item, bytes)}) > 0.95 * NUM_CONTENTS  # some icons are alike
    for item in found[:5]:
        assert isinstance(item, bytes)
        assert Image.open(io.BytesIO(item)).size == (64, 64)


def test_a_share_is_texts_mixed_among_the_images():
    found = contents(None, 0.2, rng())
    kinds = [isinstance(item, str) for item in found]
    assert sum(kinds) == 0.2 * NUM_CONTENTS
    assert 0 < sum(kinds[: NUM_CONTENTS // 2]) < sum(kinds)


def test_texts_alone_need_no_images():
    assert all(isinstance(item, str) for item in contents(Path("nowhere"), 1.0, rng()))


def test_the_same_seed_gives_the_same_inputs():
    assert contents(None, 0.5, rng()) == contents(None, 0.5, rng())


def test_files_of_a_folder_are_sent_as_they_are_and_repeat_if_they_are_few(tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.PNG").write_bytes(b"first")
    (tmp_path / "b.jpg").write_bytes(b"second")
    (tmp_path / "notes.txt").write_bytes(b"not an image")
    found = contents(tmp_path, 0.0, rng())
    assert len(found) == NUM_CONTENTS
    assert found.count(b"first") == found.count(b"second") == NUM_CONTENTS / 2


def test_a_folder_without_images_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no image files"):
        contents(tmp_path, 0.0, rng())


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_refused(share: float):
    with pytest.raises(ConfigError):
        contents(None, share, rng())
