import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elastic.data import icons, schema
from elastic.data.build_icons import draw, encode, fetch_package, merge_identical, split_of, to_table
from elastic.data.icon_sets import Drawing
from elastic.errors import DataError


def drawing(label: str, style: str) -> Drawing:
    return Drawing(
        domain=label.partition("/")[0],
        label=label,
        caption="a caption",
        tags=("one", "two"),
        style=style,
        icon_set="noto",
        icon_name=label,
    )


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 4), np.uint8)


def labels(rows: list[tuple[Drawing, np.ndarray]]) -> list[tuple[str, str]]:
    return [(row.label, row.style) for row, _ in rows]


def test_flags_that_one_style_draws_identically_become_one_class():
    rows = [
        (drawing("flag/no", "a"), picture(0)),
        (drawing("flag/bv", "a"), picture(0)),
        (drawing("flag/no", "b"), picture(1)),
        (drawing("flag/bv", "c"), picture(2)),
    ]
    assert labels(merge_identical(rows)) == [("flag/bv", "a"), ("flag/bv", "b"), ("flag/bv", "c")]


def test_merging_is_transitive():
    pairs = [("a", "flag/x", 0), ("a", "flag/y", 0), ("b", "flag/y", 1), ("b", "flag/z", 1), ("c", "flag/z", 2)]
    rows = [(drawing(label, style), picture(seed)) for style, label, seed in pairs]
    assert {label for label, _ in labels(merge_identical(rows))} == {"flag/x"}


def test_other_classes_that_look_alike_are_dropped_but_the_first():
    rows = [
        (drawing(f"people/{name}", style), picture(seed))
        for name, style, seed in (
            ("b", "x", 0),
            ("a", "x", 0),
            ("a", "y", 1),
            ("b", "y", 2),
            ("c", "x", 3),
            ("c", "y", 4),
        )
    ]
    assert {label for label, _ in labels(merge_identical(rows))} == {"people/a", "people/c"}


def test_a_class_left_with_one_style_goes():
    rows = [
        (drawing("logo/a", "x"), picture(0)),
        (drawing("logo/b", "x"), picture(1)),
        (drawing("logo/b", "y"), picture(2)),
    ]
    assert labels(merge_identical(rows)) == [("logo/b", "x"), ("logo/b", "y")]


def test_splits_are_about_seven_one_two():
    counts = [split_of(f"class/{number}") for number in range(4000)]
    shares = [counts.count(split) / 4000 for split in schema.SPLITS]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)


def test_encoding_loses_nothing_not_even_below_transparent_pixels():
    pixels = picture(5)
    pixels[:32, :, 3] = 0
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode(pixels))).convert("RGBA")), pixels)


def test_rows_follow_the_schema_and_carry_credits():
    found = to_table([(drawing("flag/no", "a"), picture(0))])
    assert tuple(found.column_names[: len(schema.COLUMNS)]) == schema.COLUMNS
    row = found.to_pylist()[0]
    assert row["synthetic_captions"] == ["a drawing of a caption: one, two"]
    assert row["license"] == "Apache-2.0"
    assert row["caption_id"] == row["label"] == "flag/no"


def test_what_cannot_be_drawn_is_left_out():
    assert draw("<svg") is None
    square = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><rect width="1" height="1" fill="#0f0"/></svg>'
    image = draw(square)
    assert image is not None
    assert (image == [0, 255, 0, 255]).all()


def test_another_version_than_the_pinned_one_is_refused(tmp_path: Path):
    package = icons.ICON_PACKAGES[0]
    folder = tmp_path / package.name / "package"
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": package.npm_name, "version": "9.9.9"}))
    with pytest.raises(DataError, match=r"holds @iconify-json/noto@9.9.9, wanted @iconify-json/noto@1.2.9"):
        fetch_package(package, tmp_path)


def test_a_machine_without_npm_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"npm is not installed; install Node.js or pass --npm-dir"):
        fetch_package(icons.ICON_PACKAGES[0], tmp_path)
