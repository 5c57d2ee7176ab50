from collections import Counter

import numpy as np
import pytest

from elastic.data.scene_captions import (
    GENERIC_WORDS,
    NOISE_WORDS,
    Thing,
    detailed_caption,
    drop,
    short_caption,
    web_caption,
)


def thing(name: str, row: int, column: int) -> Thing:
    return Thing(name=name, domain="things", row=row, column=column)


CAT, APPLE, BELL = thing("cat", 2, 0), thing("red apple", 0, 1), thing("bell", 1, 1)


def test_the_detailed_caption_says_what_lies_where_in_reading_order():
    assert (
        detailed_caption([CAT, APPLE, BELL]) == "a red apple at the top, a bell in the middle, a cat at the bottom left"
    )


def test_the_short_caption_is_the_list_of_things():
    assert short_caption([CAT]) == "a cat"
    assert short_caption([CAT, APPLE]) == "a red apple and a cat"
    assert short_caption([CAT, APPLE, BELL]) == "a red apple, a bell and a cat"


def test_the_article_fits_the_name():
    assert short_caption([thing("anchor", 0, 0), thing("eye", 0, 1)]) == "an anchor and an eye"


def test_each_cell_has_words_of_its_own():
    captions = {detailed_caption([thing("cat", row, column)]) for row in range(3) for column in range(3)}
    assert len(captions) == 9


def test_neither_synthetic_caption_tells_which_thing_is_salient():
    for caption in (detailed_caption, short_caption):
        assert caption([CAT, APPLE]) == caption([APPLE, CAT])


def test_things_are_missed_as_often_as_asked_but_never_all():
    rng = np.random.default_rng(0)
    noticed = [drop(rng, [CAT, APPLE], 0.3) for _ in range(4000)]
    assert min(map(len, noticed)) == 1
    # The salient thing is also kept when both would be missed.
    assert np.mean([CAT in things for things in noticed]) == pytest.approx(0.7 + 0.09, abs=0.02)
    assert np.mean([APPLE in things for things in noticed]) == pytest.approx(0.7, abs=0.02)
    assert drop(rng, [CAT, APPLE], 0.0) == [CAT, APPLE]


def subject_of(caption: str) -> str:
    return " ".join(word for word in caption.split() if word not in NOISE_WORDS)


def test_a_web_caption_names_the_salient_thing_as_often_as_asked():
    rng = np.random.default_rng(0)
    subjects = Counter(subject_of(web_caption(rng, [CAT, APPLE], 0.75)) for _ in range(4000))
    assert subjects["cat"] / 4000 == pytest.approx(0.75, abs=0.02)
    assert subjects["red apple"] / 4000 == pytest.approx(0.125, abs=0.02)
    assert set(subjects) - {"cat", "red apple"} == set(GENERIC_WORDS)


def test_a_web_caption_has_one_to_three_words_of_noise_in_any_order():
    rng = np.random.default_rng(0)
    captions = [web_caption(rng, [CAT], 1.0).split() for _ in range(300)]
    assert {len(words) - 1 for words in captions} == {1, 2, 3}
    assert {words.index("cat") for words in captions} == {0, 1, 2, 3}
    assert all(len(set(words)) == len(words) for words in captions)
    assert {word for words in captions for word in words} == {"cat", *NOISE_WORDS}
