import hashlib
import io
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from elastic.data import icons


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    names = [name for name in pq.read_schema(icons.BUNDLED_ICONS).names if name != "image"]
    return pq.read_table(icons.BUNDLED_ICONS, columns=names).to_pylist()


def test_the_set_has_the_documented_size(rows: list[dict]):
    assert len(rows) == icons.NUM_IMAGES
    assert len({row["label"] for row in rows}) == icons.NUM_CLASSES
    assert len({row["domain"] for row in rows}) == icons.NUM_DOMAINS
    assert len({row["style"] for row in rows}) == icons.NUM_STYLES
    assert Counter(row["split"] for row in rows) == icons.SPLIT_SIZES


def test_it_stays_small_and_readable_by_row():
    file = pq.ParquetFile(icons.BUNDLED_ICONS)
    assert icons.BUNDLED_ICONS.stat().st_size < 25e6
    assert max(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)) <= 1000


def test_a_class_lies_in_one_split_and_one_domain(rows: list[dict]):
    for name in ("split", "domain"):
        assert len({(row["label"], row[name]) for row in rows}) == icons.NUM_CLASSES


def test_a_class_has_each_style_once_and_at_least_two(rows: list[dict]):
    assert max(Counter((row["label"], row["style"]) for row in rows).values()) == 1
    assert min(Counter(row["label"] for row in rows).values()) >= 2


def test_every_row_is_credited(rows: list[dict]):
    packages = {package.name: package for package in icons.ICON_PACKAGES}
    for row in rows:
        package = packages[row["icon_set"]]
        assert (row["license"], row["author"], row["version"]) == (package.license, package.author, package.version)
        assert row["attribution"] == package.attribution
        assert row["icon_name"] and row["caption"] and row["synthetic_captions"][0].startswith("a drawing of ")


def test_the_licence_file_names_every_package():
    text = icons.BUNDLED_ICONS.with_name("LICENSES.md").read_text()
    for package in (*icons.ICON_PACKAGES, icons.EMOJI_NAMES):
        assert f"| {package.npm_name} | {package.version} |" in text


def test_no_two_classes_share_a_picture(rows: list[dict]):
    classes: dict[str, set[str]] = {}
    images = pq.read_table(icons.BUNDLED_ICONS, columns=["image"])["image"].to_pylist()
    for row, image in zip(rows, images, strict=True):
        classes.setdefault(hashlib.sha1(image).hexdigest(), set()).add(row["label"])
    assert max(map(len, classes.values())) == 1


def test_images_are_square_and_have_ink():
    for image in pq.read_table(icons.BUNDLED_ICONS, columns=["image"])["image"].to_pylist()[::97]:
        pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGBA"))
        assert pixels.shape == (icons.IMAGE_SIZE, icons.IMAGE_SIZE, 4)
        assert (pixels[..., 3] > 16).mean() > 0.01
