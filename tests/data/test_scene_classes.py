import itertools
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from elastic.data.icons import BUNDLED_ICONS
from elastic.data.scene_captions import GENERIC_WORDS, NOISE_WORDS
from elastic.data.scene_classes import CutOut, SceneClass, by_split, choose_classes, distinctness, is_fit_name
from elastic.data.scenes import CATEGORIES, SceneConfig
from elastic.errors import ConfigError

from .drawing import encode


@pytest.fixture(scope="module")
def classes() -> tuple[SceneClass, ...]:
    return choose_classes(SceneConfig())


def icon(colour: tuple[int, int, int, int], top: int, left: int, height: int, width: int) -> CutOut:
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[top : top + height, left : left + width] = colour
    return CutOut(encode(pixels))


def test_eight_classes_of_each_of_six_domains_are_chosen(classes: tuple[SceneClass, ...]):
    assert Counter(kind.domain for kind in classes) == dict.fromkeys(CATEGORIES, 8)
    assert list(classes) == sorted(classes, key=lambda kind: (kind.domain, kind.name))


def test_names_share_no_word_with_each_other_or_with_the_noise(classes: tuple[SceneClass, ...]):
    words = [word for kind in classes for word in kind.name.split()]
    assert len(set(words)) == len(words)
    assert not set(words) & {*NOISE_WORDS, *GENERIC_WORDS}


def test_one_word_is_preferred_to_two(classes: tuple[SceneClass, ...]):
    icons = pq.read_table(BUNDLED_ICONS, columns=["domain", "caption", "split"]).to_pylist()
    counts = Counter((row["domain"], row["caption"]) for row in icons if row["split"] == "train")
    for domain in CATEGORIES:
        short = {
            name
            for (where, name), count in counts.items()
            if where == domain and count >= 7 and is_fit_name(name) and " " not in name
        }
        chosen = {kind.name for kind in classes if kind.domain == domain}
        assert len(chosen & short) == min(8, len(short))


def test_classes_are_of_the_training_split_of_icons_and_use_each_drawing_once(classes: tuple[SceneClass, ...]):
    icons = pq.read_table(BUNDLED_ICONS, columns=["domain", "caption", "split"]).to_pylist()
    counts = Counter((row["domain"], row["caption"], row["split"]) for row in icons)
    for kind in classes:
        sizes = {split: len(cut_outs) for split, cut_outs in kind.cut_outs.items()}
        assert sum(sizes.values()) == counts[kind.domain, kind.name, "train"] >= 7
        assert (sizes["train"], sizes["val"]) == (5, 1)
        assert len({id(cut_out) for cut_outs in kind.cut_outs.values() for cut_out in cut_outs}) == sum(sizes.values())


def test_no_split_is_of_few_styles(classes: tuple[SceneClass, ...]):
    # The test drawings of different classes stand at different places in the order of the file.
    icons = pq.read_table(BUNDLED_ICONS, columns=["image", "caption", "style"]).to_pylist()
    names = {kind.name: kind for kind in classes}
    styles: Counter[str] = Counter()
    for row in icons:
        if row["caption"] in names:
            pixels = CutOut(row["image"]).at(16).colour
            tests = names[row["caption"]].cut_outs["test"]
            styles[row["style"]] += any(np.array_equal(pixels, cut_out.at(16).colour) for cut_out in tests)
    assert len([style for style, count in styles.items() if count >= 5]) == 8


def test_names_that_fit_after_an_article():
    assert [is_fit_name(name) for name in ("cat", "red apple", "ice cream")] == [True] * 3
    unfit = ("skis", "Tokyo tower", "three o'clock", "hear no evil", "t-shirt", "keycap: 1")
    assert [is_fit_name(name) for name in unfit] == [False] * 6


def test_more_classes_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"classes_per_category=60: emoji-\S+ has \d+ classes of 7 drawings"):
        choose_classes(SceneConfig(classes_per_category=60))


def test_drawings_are_divided_five_one_and_the_rest():
    cut_outs = [icon((255, 0, 0, 255), 0, 0, 8 + index, 8) for index in range(8)]
    parts = by_split(cut_outs)
    assert parts == {"train": tuple(cut_outs[:5]), "val": (cut_outs[5],), "test": tuple(cut_outs[6:])}


def test_a_cut_out_is_trimmed_and_keeps_its_proportions():
    drawing = icon((200, 100, 50, 255), 5, 30, 40, 20).at(30)
    assert drawing.mask.shape == (30, 15)
    assert drawing.mask.all() and drawing.area == 450
    assert (drawing.colour == [200, 100, 50]).all()
    assert (drawing.transparency == 0).all()


def test_a_translucent_drawing_lets_its_share_of_the_background_through():
    drawing = icon((200, 100, 50, 204), 0, 0, 64, 64).at(20)
    assert drawing.transparency == pytest.approx(0.2)
    assert drawing.colour[0, 0] == pytest.approx([160, 80, 40], abs=1)


def test_each_size_is_made_once():
    cut_out = icon((1, 2, 3, 255), 0, 0, 9, 9)
    assert cut_out.at(12) is cut_out.at(12)
    assert cut_out.at(12) is not cut_out.at(13)


def test_distinctness_is_the_mean_margin_of_the_nearest_neighbours():
    shapes = [
        [icon((255, 0, 0, 255), 0, 0, 20, width) for width in (20, 16)],
        [icon((0, 0, 255, 255), 0, 0, 20, width) for width in (5, 6, 9)],
    ]
    thumbnails = []
    for cut_out in itertools.chain(*shapes):
        drawing = cut_out.at(12)
        square = np.zeros((12, 12, 4))
        left = (12 - drawing.mask.shape[1]) // 2
        opaque = np.concatenate([drawing.colour, np.full((*drawing.mask.shape, 1), 255.0)], 2)
        square[:, left : left + drawing.mask.shape[1]] = opaque
        thumbnails.append(square)
    mean = np.mean(thumbnails, axis=0)
    units = [(each - mean).ravel() / np.linalg.norm(each - mean) for each in thumbnails]
    owner = [0, 0, 1, 1, 1]
    margins: list[list[float]] = [[], []]
    for place, unit in enumerate(units):
        others = [(float(unit @ units[other]), owner[other]) for other in range(5) if other != place]
        own = max(value for value, its in others if its == owner[place])
        foreign = max(value for value, its in others if its != owner[place])
        margins[owner[place]].append(own - foreign)
    assert distinctness(shapes) == pytest.approx([np.mean(each) for each in margins])
    assert distinctness(shapes).min() > 0
