"""The data set `scenes`: several bundled icons on one textured background, with captions and exact dense labels.

It is the small test bed for spatial awareness (TIPS [0]) and for training on synthetic images (SynCLR [1]): the
drawings are real, where they lie is known to the pixel, and captions can say what lies where. Everything is composed
on this machine from the bundled icons and is a function of the seed; nothing is downloaded.

**Domain `scenes`** (source `real`): `label` is the name of the *salient* object, the one large one. `caption` is like
alt text from the web: usually the salient object and some words of noise. `synthetic_captions` are [detailed, short]:
all objects with their places, and a list of the objects (the two granularities of TIPSv2 [2]).

**Domain `scenes-synthetic`** (source `synthetic`, training only): several images of one caption, the first of
their `synthetic_captions`; `caption_id` names it, and `caption` is null, as nobody wrote one. The objects and their
places in words are the caption's, also which object is the salient one; drawings, sizes, exact places and
backgrounds differ. Rows have no label.

**Classes.** Six emoji domains of the icons, eight classes of each; signs and smileys are left out because each of
them is one shape. A class is a candidate if its name is one or two words of small letters that do not end in `s` (so
that "a" fits), if it has at least seven drawings, and if it is in the training split of `icons`, so that training
on both sets leaves the test classes of `icons` unseen. Those of one word come first, then those whose drawings
are told apart best at 12 x 12 pixels; of each domain the first whose words no earlier one uses are taken
(`scene_classes.choose_classes`). The drawings of a class are divided by hash: five for training, one for
validation, the rest for testing. So test scenes show unseen drawings of known things.

**Dense labels** stand in further columns (`DENSE`), as pixels in the order of the image. The segment classes are the
six domains (`SEGMENT_NAMES`, also in the file's metadata); the finer 48 follow from `instances` and `objects`.

**Flips.** Captions speak of left and right: a recipe on scenes must not flip images.

Sources: [0] Maninis et al., ICLR 2025, https://arxiv.org/abs/2410.16512; [1] Tian et al., CVPR 2024,
https://arxiv.org/abs/2312.17742; [2] TIPSv2, CVPR 2026, https://arxiv.org/abs/2604.12012.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from elastic.data.filesystem import cache_dir
from elastic.data.schema import INSTANCES, SEGMENTS
from elastic.errors import ConfigError

VERSION = 2
"""Part of the cached file's name; grows when the rows change."""

DOMAIN, SYNTHETIC_DOMAIN = "scenes", "scenes-synthetic"

CATEGORIES = (
    "emoji-activities",
    "emoji-animals-nature",
    "emoji-food-drink",
    "emoji-objects",
    "emoji-people-body",
    "emoji-travel-places",
)
"""Domains of the icons whose classes appear."""

SEGMENT_NAMES = ("background", *CATEGORIES)
"""Name of each pixel value of `segments`."""

GRID = 3
"""Places are told on a grid of so many rows and columns, by the middle of the object."""

DENSE = pa.schema(
    [
        pa.field(SEGMENTS, pa.binary(), metadata={"is": "PNG, 8-bit grey: class of each pixel, 0 is background"}),
        pa.field(INSTANCES, pa.binary(), metadata={"is": "PNG, 8-bit grey: k is the k-th of objects, 0 is none"}),
        pa.field(
            "objects",
            pa.list_(
                pa.struct(
                    [
                        pa.field("name", pa.string()),
                        pa.field("domain", pa.string()),
                        pa.field("row", pa.int8()),
                        pa.field("column", pa.int8()),
                    ]
                )
            ),
            metadata={"is": "what was drawn, the salient object first; row and column count from the top left"},
        ),
    ]
)
"""Columns behind those of `schema.ROW`. A pixel belongs to the topmost object that covers at least half of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneConfig:
    """What a set of scenes holds; the defaults are the set that `open_source("scenes")` opens."""

    seed: int = 0
    num_train: int = 4000
    num_val: int = 400
    num_test: int = 800
    num_captions: int = 1000
    """Captions of the synthetic domain."""
    images_per_caption: int = 4
    """SynCLR draws as many."""
    image_size: int = 64
    """Width and height in pixels."""
    num_objects: tuple[int, int] = (2, 4)
    """Fewest and most objects of a scene, the salient one included."""
    salient_px: tuple[int, int] = (30, 40)
    """Smallest and largest longer side of the salient object."""
    other_px: tuple[int, int] = (14, 26)
    """The same of the other objects."""
    min_salient_visible: float = 0.85
    """Share of the salient object that nothing else covers."""
    min_visible: float = 0.7
    """Share of every other object that nothing else covers."""
    min_contrast: float = 40.0
    """Mean difference of an object's visible pixels from the background behind them, in 8-bit levels."""
    salient_named: float = 0.75
    """Probability that a web caption names the salient object."""
    object_dropped: float = 0.05
    """Probability that a synthetic caption of a real scene leaves out an object."""
    min_drawings: int = 7
    """Drawings that a class needs."""
    classes_per_category: int = 8

    def __post_init__(self) -> None:
        minima = {"num_train": 1, "num_val": 0, "num_test": 0, "num_captions": 1, "images_per_caption": 1}
        # Five drawings for training and one each for validation and testing.
        for name, least in (minima | {"classes_per_category": 1, "min_drawings": 7}).items():
            if getattr(self, name) < least:
                raise ConfigError(name, getattr(self, name), f"must be at least {least}")
        for name in ("min_salient_visible", "min_visible", "salient_named", "object_dropped"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(name, getattr(self, name), "must be a share from 0 to 1")
        fewest, most = self.num_objects
        limit = min(GRID**2, len(CATEGORIES) * self.classes_per_category)
        if not 1 <= fewest <= most <= limit:
            rule = f"must ascend within 1 to {limit}: each object has its own place and class"
            raise ConfigError("num_objects", self.num_objects, rule)
        for name in ("salient_px", "other_px"):
            smallest, largest = getattr(self, name)
            # An object in an outer row or column of the grid has to fit into the image.
            if not 1 <= smallest <= largest < 2 * self.image_size / GRID:
                raise ConfigError(name, (smallest, largest), "must ascend and stay below 2/3 of image_size")

    @property
    def num_rows(self) -> int:
        """Images of the whole set."""
        return self.num_train + self.num_val + self.num_test + self.num_captions * self.images_per_caption


def cached_path() -> Path:
    """Where the default set lies once it was built."""
    return cache_dir() / f"scenes-{VERSION}.parquet"
