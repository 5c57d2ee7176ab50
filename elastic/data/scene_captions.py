"""What the captions of `scenes` say: alt text as the web has it, and descriptions as a captioner writes them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PLACES = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the middle", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
"""Words for each cell of the grid."""

NOISE_WORDS = (
    "2023",
    "2024",
    "4k",
    "best",
    "buy",
    "cheap",
    "clipart",
    "collection",
    "cute",
    "design",
    "download",
    "free",
    "hd",
    "jpg",
    "new",
    "online",
    "png",
    "premium",
    "sale",
    "shop",
    "stock",
    "template",
    "vector",
    "wallpaper",
)
"""Words of web captions that say nothing about the image."""

GENERIC_WORDS = ("graphic", "illustration", "image", "picture", "things")
"""What a web caption may say instead of an object's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """An object as the captions know it."""

    name: str
    domain: str
    row: int
    """Of the grid, from the top."""
    column: int
    """Of the grid, from the left."""


def detailed_caption(things: Sequence[Thing]) -> str:
    """Every thing with its place, in reading order; it does not tell which one is salient."""
    return ", ".join(f"{_with_article(thing.name)} {PLACES[thing.row][thing.column]}" for thing in _ordered(things))


def short_caption(things: Sequence[Thing]) -> str:
    """The list of things, in reading order."""
    *firsts, last = (_with_article(thing.name) for thing in _ordered(things))
    return f"{', '.join(firsts)} and {last}" if firsts else last


def drop(rng: np.random.Generator, things: Sequence[Thing], probability: float) -> list[Thing]:
    """The things that a captioner noticed: each is missed with a probability, but never all."""
    noticed = [thing for thing in things if rng.random() >= probability]
    return noticed or [things[0]]


def web_caption(rng: np.random.Generator, things: Sequence[Thing], salient_named: float) -> str:
    """The first, salient thing or, failing that, another one or a generic word, among words of noise."""
    if rng.random() < salient_named:
        subject = things[0].name
    else:
        others = [thing.name for thing in things[1:]]
        subject = str(rng.choice(others if others and rng.random() < 0.5 else GENERIC_WORDS))
    words = [subject, *rng.choice(NOISE_WORDS, rng.integers(1, 4), replace=False)]
    return " ".join(words[place] for place in rng.permutation(len(words)))


def _ordered(things: Sequence[Thing]) -> list[Thing]:
    return sorted(things, key=lambda thing: (thing.row, thing.column))


def _with_article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
