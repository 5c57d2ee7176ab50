"""What a load embeds: encoded images and texts, all in memory before the clock starts."""

from pathlib import Path

import numpy as np

from elastic.data.sources import open_source
from elastic.errors import ConfigError, DataError

NUM_CONTENTS = 500
"""Different inputs of a load, which repeats them."""
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


def contents(images: Path | None, text_share: float, rng: np.random.Generator) -> list[bytes | str]:
    """Shuffled inputs of which `text_share` are texts: the bundled icons' captions.

    Args:
        images: a folder whose image files, at any depth, are sent as they are; left out, the bundled icons.
        text_share: between 0 and 1.
        rng: decides which are drawn, and their order.

    Raises:
        ConfigError: the share is out of range.
        DataError: the folder holds no image.
    """
    if not 0 <= text_share <= 1:
        raise ConfigError("text_share", text_share, "must be between 0 and 1")
    num_texts = round(NUM_CONTENTS * text_share)
    num_images = NUM_CONTENTS - num_texts
    found: list[bytes | str] = []
    if num_images:
        found += _icons(num_images, rng) if images is None else _files(images, num_images, rng)
    if num_texts:
        captions = [text for text in open_source("icons").metadata["caption"].to_pylist() if text]
        found += [captions[place] for place in rng.choice(len(captions), size=num_texts)]
    return [found[place] for place in rng.permutation(len(found))]


def _icons(count: int, rng: np.random.Generator) -> list[bytes]:
    icons = open_source("icons")
    return icons.read_images(rng.choice(len(icons), size=count, replace=False))


def _files(folder: Path, count: int, rng: np.random.Generator) -> list[bytes]:
    """`count` images, of which some repeat where the folder has fewer."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DataError(str(folder), "holds no image files", f"name a folder with {', '.join(sorted(IMAGE_SUFFIXES))}")
    chosen = rng.permutation(len(paths))[:count]
    read = [paths[place].read_bytes() for place in chosen]
    return [read[place % len(read)] for place in range(count)]
