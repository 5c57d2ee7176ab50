"""What a run trains on: streams of rows, how each is sampled, and what is done to an image."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from elastic.data.augment import AugmentConfig
from elastic.data.schema import SPLITS
from elastic.errors import ConfigError

GIB = 1024**3


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassBalanced:
    """Each batch is `classes_per_batch` distinct instance classes, each with the same number of images.

    Or as many captions with the images made from each of them, where a caption takes the place of a class (SynCLR).
    """

    classes_per_batch: int = 128
    """Over all workers together; must divide by their number."""
    images_per_class: int = 2
    """Distinct images of a class; a class that has fewer repeats some, augmented differently."""
    by: Literal["label", "caption_id"] = "label"
    """What makes rows one class; rows without it are not shown."""

    def __post_init__(self) -> None:
        for name in ("classes_per_batch", "images_per_class"):
            if getattr(self, name) < 1:
                raise ConfigError(f"sampling.{name}", getattr(self, name), "must be at least 1")

    @property
    def num_groups(self) -> int:
        """Groups of rows that must stay on one worker."""
        return self.classes_per_batch

    @property
    def batch_size(self) -> int:
        """Images of one batch over all workers, before `views_per_image`."""
        return self.classes_per_batch * self.images_per_class


@dataclass(frozen=True, kw_only=True, slots=True)
class Shuffled:
    """Each batch is the next rows of a shuffled epoch; for streams without labels, or with one image per class.

    With one stream every epoch shows each row once. With several, a stream's steps are a random subset of its
    epochs' batches, so that every row is equally likely but an epoch is not complete.
    """

    batch_size: int = 256
    """Over all workers together; must divide by their number."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError("sampling.batch_size", self.batch_size, "must be at least 1")

    @property
    def num_groups(self) -> int:
        """Groups of rows that must stay on one worker: every row is its own."""
        return self.batch_size


Sampling: TypeAlias = ClassBalanced | Shuffled


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalCrops:
    """Small crops of every view's image, for the student alone (DINO's multi-crop)."""

    count: int = 6
    """Crops of each view (TIPS: 6, SynCLR: 4)."""
    image_size: int = 16
    """Side of a crop in pixels; a whole number of the model's patches (TIPS: 98 of 224)."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(scale=(0.3, 0.6), shift=0.5))
    """What a crop shows: `scale` is the part of the canvas, `shift` how far from its centre."""

    def __post_init__(self) -> None:
        if min(self.count, self.image_size) < 1:
            raise ConfigError("data.local_crops", self, "needs a count and an image_size of at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """Rows of one source that fill whole batches: one domain, one synthetic set, or everything."""

    name: str = "icons"
    """What logs call it; unique in the run."""
    source: str = "icons"
    """`icons` (bundled), or a path or URL: Parquet, tars, or a folder with metadata.csv or metadata.jsonl."""
    domains: tuple[str, ...] = ()
    """Only these domains of the source; none means all."""
    weight: float = 1.0
    """How often a step takes this stream, relative to the others."""
    sampling: Sampling = field(default_factory=ClassBalanced)
    """How rows are put into batches."""
    views_per_image: int = 1
    """Differently augmented views of each image, adjacent in the batch."""
    captions: Literal["one", "both"] = "one"
    """Whether a row shows one caption of either kind, or one of each, kept apart (TIPS)."""
    shows_labels: bool = True
    """Whether objectives get the rows' classes; false keeps a stream to its captions and images."""
    synthetic_caption_probability: float = 0.5
    """How often a row that has synthetic captions and shows one caption shows one of them."""
    augment: AugmentConfig | None = None
    """What each view of this stream is changed by, if not by the data's `augment`."""
    local_crops: LocalCrops | None = None
    """Small crops beside the views, for objectives that compare them with the whole."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ConfigError("stream.weight", self.weight, "must not be negative")
        if self.views_per_image < 1:
            raise ConfigError("stream.views_per_image", self.views_per_image, "must be at least 1")
        if not 0 <= self.synthetic_caption_probability <= 1:
            value = self.synthetic_caption_probability
            raise ConfigError("stream.synthetic_caption_probability", value, "must be between 0 and 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Everything that decides what a worker sees at a step, together with the run's seed."""

    streams: tuple[StreamConfig, ...] = (StreamConfig(),)
    """Each step takes one of them, the same on every worker."""
    order: Literal["shuffled", "round_robin"] = "shuffled"
    """How they share out the steps of a segment: each gets its weight's part of them in random order, or they take
    turns, for which those that have a weight need the same."""
    split: str = "train"
    """Rows of this split: train, val or test."""
    image_size: int = 32
    """Side of the square images that come out, in pixels."""
    canvas_size: int = 64
    """Side of the square that images are decoded to before augmentation, in pixels; at least `image_size`."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What each view is changed by."""
    max_pixels: int = 64_000_000
    """An image that declares more is refused before it is decoded, and counts as broken."""
    max_bad_fraction: float = 0.01
    """Broken images are replaced, counted and logged; a larger share of the images read so far ends the run."""
    hold_decoded_bytes: int = 2 * GIB
    """Sets whose decoded canvases fit in this are decoded once and held in shared memory."""
    num_workers: int = 1
    """Processes that decode and augment; more are useful where cores are free."""
    prefetch_steps: int = 4
    """Steps that a training worker holds ready ahead of the one it computes."""
    segment_steps: int = 1000
    """Stream weights change only at multiples of this many steps, and hold exactly between two of them: each stream
    gets its part rounded down, and the last positive one the rest."""

    def __post_init__(self) -> None:
        names = [stream.name for stream in self.streams]
        if not names or len(set(names)) < len(names):
            raise ConfigError("data.streams", names, "needs at least one stream, and no name twice")
        if not any(stream.weight > 0 for stream in self.streams):
            raise ConfigError("data.streams", names, "needs at least one stream with a positive weight")
        if self.split not in SPLITS:
            raise ConfigError("data.split", self.split, f"must be one of {', '.join(SPLITS)}")
        for name in ("image_size", "max_pixels", "num_workers", "prefetch_steps", "segment_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name}", getattr(self, name), "must be at least 1")
        if self.canvas_size < self.image_size:
            raise ConfigError("data.canvas_size", self.canvas_size, f"must be at least image_size={self.image_size}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError("data.max_bad_fraction", self.max_bad_fraction, "must be between 0 and 1")
        self._check_shares()

    def _check_shares(self) -> None:
        positive = [stream for stream in self.streams if stream.weight > 0]
        rarest = min(positive, key=lambda stream: stream.weight)
        if self.order == "round_robin":
            if len({stream.weight for stream in positive}) > 1:
                raise ConfigError("data.order", self.order, "needs streams of equal weight, or of weight 0")
        elif rarest.weight * self.segment_steps < (total := sum(self.weights)) * (1 - 1e-9):
            rule = f"gives stream {rarest.name!r} no step at {rarest.weight / total:.2g} of them; raise one of both"
            raise ConfigError("data.segment_steps", self.segment_steps, rule)

    @property
    def weights(self) -> tuple[float, ...]:
        """The streams' weights at the start, as configured."""
        return tuple(stream.weight for stream in self.streams)
