"""The protocols that `elastic probe` runs: what each needs, what a guess would reach, what one submodel reaches.

The protocols themselves, and their sources, are in `zero_shot`, `text_retrieval`, `knn`, `linear` and `dense`. What
they are given is chosen here: neighbours are looked up in `train`, probes are fitted on it, the weight decay of the
linear probe is chosen on `val`; the last bin of the depth probe lies at the largest distance of the training rows;
written and synthetic captions are searched apart, each among its own kind, synthetic ones by the embedding of the
second class token where there is one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from torch import Tensor

from elastic.data.dense import DenseSet
from elastic.data.schema import DEPTH, SEGMENTS
from elastic.data.tokenizer import Tokenizer
from elastic.errors import ConfigError
from elastic.evaluate.dense import ProbeConfig, probe_depth, probe_segments
from elastic.evaluate.embed import truncate
from elastic.evaluate.features import GlobalToken, global_features, image_embeddings, patch_features
from elastic.evaluate.knn import knn
from elastic.evaluate.linear import Rows, linear_probe
from elastic.evaluate.probe_result import ProbeMetric, ProbeTask, Scale
from elastic.evaluate.probe_scale import of_captions, of_classes, of_depth, of_names, of_segments
from elastic.evaluate.probe_set import ClassNames, ProbeSet, dense_columns, name_classes
from elastic.evaluate.text_retrieval import caption_retrieval, pair_captions
from elastic.evaluate.zero_shot import zero_shot
from elastic.model.encoder import Encoder
from elastic.submodel import Submodel

Images: TypeAlias = Float[Tensor, "_ 3 size size"]
Values: TypeAlias = dict[tuple[ProbeMetric, int | None], float]
"""By metric and, where it is measured at every width, embed_dim."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbesConfig:
    """What to measure, on what; the fields are explained at `elastic.commands.probe.Probe`."""

    source: str = "scenes"
    split: str = "test"
    domains: tuple[str, ...] = ()
    tasks: tuple[ProbeTask, ...] = ()
    class_names: ClassNames = "label"
    token: GlobalToken = "cls_token"
    batch_size: int = 256
    max_images: int = 5000
    dense_steps: int = 400
    untrained: bool = True

    def __post_init__(self) -> None:
        if self.split not in ("val", "test"):
            raise ConfigError("split", self.split, "must be val or test, as probes are fitted on train")
        for name in ("batch_size", "max_images", "dense_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(name, getattr(self, name), "must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """An encoder, and the rows that it is tried on."""

    encoder: Encoder
    tokenizer: Tokenizer | None
    config: ProbesConfig
    data: ProbeSet
    dense: Mapping[str, DenseSet]
    """Labels of pixels by split; empty where the source has none, or no task reads them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What one submodel sees."""

    submodel: Submodel
    images: Mapping[str, Images]
    """Of each split, every image of its part."""
    embedded: Float[np.ndarray, "tested dim"]
    """The tested images, at full width, by the pooled token."""


class Task(ABC):
    """One protocol."""

    fitted_on: tuple[str, ...] = ()
    """Splits whose images it reads beside the tested ones."""

    @abstractmethod
    def obstacle(self, bench: Bench) -> str | None:
        """Why this model or these rows do not allow it; None where they do."""

    @abstractmethod
    def scales(self, bench: Bench) -> dict[ProbeMetric, Scale]:
        """What its metrics are to be compared with."""

    @abstractmethod
    def measure(self, bench: Bench, view: View) -> Values:
        """Its metrics for one submodel."""


class ZeroShot(Task):
    """Which class, from its name alone."""

    def obstacle(self, bench: Bench) -> str | None:
        """Needs a text tower, and at least two classes with names."""
        if reason := _mute(bench) or _unlabelled(bench, bench.data.split):
            return reason
        names = name_classes(bench.data.tested, bench.config.class_names).names
        ids = [name for name in names if "/" in name] if bench.config.class_names == "label" else []
        if ids:
            return (
                f"labels such as {ids[0]!r} are ids, not names; --class-names caption calls classes by their captions"
            )
        return None if len(names) > 1 else f"the classes of {bench.data.split} have fewer than two names"

    def scales(self, bench: Bench) -> dict[ProbeMetric, Scale]:
        """Chance among the names."""
        return {"zero_shot_top1": of_names(name_classes(bench.data.tested, bench.config.class_names))}

    def measure(self, bench: Bench, view: View) -> Values:
        """Top-1 at every width."""
        assert bench.tokenizer is not None
        named = name_classes(bench.data.tested, bench.config.class_names)
        images = {view.submodel: view.embedded[named.images]}
        scores = zero_shot(bench.encoder, bench.tokenizer, images, named.classes, named.names)
        return {("zero_shot_top1", score.embed_dim): score.top1 for score in scores}


class Captions(Task):
    """Whether captions and their images find each other."""

    def __init__(self, *, synthetic: bool) -> None:
        self.synthetic = synthetic

    def obstacle(self, bench: Bench) -> str | None:
        """Needs a text tower, and captions of this kind."""
        kind = "synthetic caption" if self.synthetic else "caption"
        missing = None if any(self._texts(bench)) else f"no image of {bench.data.split} has a {kind}"
        return _mute(bench) or missing

    def scales(self, bench: Bench) -> dict[ProbeMetric, Scale]:
        """Chance among all captions, and among all images."""
        to_text, to_image = self._metrics
        pairs = pair_captions(self._texts(bench))
        of_image, of_caption = of_captions(pairs)
        return {to_text: of_image, to_image: of_caption}

    def measure(self, bench: Bench, view: View) -> Values:
        """R@1 in both directions at every width."""
        assert bench.tokenizer is not None
        to_text, to_image = self._metrics
        images = {view.submodel: self._embedded(bench, view)}
        values: Values = {}
        for score in caption_retrieval(bench.encoder, bench.tokenizer, images, self._texts(bench)):
            values[to_text, score.embed_dim] = score.image_to_text
            values[to_image, score.embed_dim] = score.text_to_image
        return values

    @property
    def _metrics(self) -> tuple[ProbeMetric, ProbeMetric]:
        if self.synthetic:
            return "image_to_synthetic_caption", "synthetic_caption_to_image"
        return "image_to_caption", "caption_to_image"

    def _embedded(self, bench: Bench, view: View) -> Float[np.ndarray, "tested dim"]:
        token = synthetic_caption_token(bench.encoder) if self.synthetic else "cls_token"
        if token == "cls_token":
            return view.embedded
        return embed(bench, view.images[bench.data.split], view.submodel, token)

    def _texts(self, bench: Bench) -> tuple[tuple[str, ...], ...]:
        return bench.data.tested.synthetic_captions if self.synthetic else bench.data.tested.captions


class Neighbours(Task):
    """Which class, by the nearest training images."""

    fitted_on = ("train",)

    def obstacle(self, bench: Bench) -> str | None:
        """Needs classes that training rows have too."""
        return _strange(bench)

    def scales(self, bench: Bench) -> dict[ProbeMetric, Scale]:
        """Chance among the classes of the training rows."""
        scale = of_classes(bench.data.train, bench.data.tested)
        return {"knn_1_top1": scale, "knn_20_top1": scale}

    def measure(self, bench: Bench, view: View) -> Values:
        """Top-1 of one neighbour and of twenty, at every width."""
        train, tested = bench.data.train, bench.data.tested
        index = embed(bench, view.images["train"][train.labelled], view.submodel)
        query = view.embedded[tested.labelled]
        known, wanted = train.classes[train.labelled], tested.classes[tested.labelled]
        values: Values = {}
        for width in bench.encoder.space.embed_dims:
            score = knn(truncate(index, width), known, truncate(query, width), wanted)
            values["knn_1_top1", width], values["knn_20_top1", width] = score.top1_of_1, score.top1_of_20
        return values


class Linear(Task):
    """Which class, by a linear layer on the global token."""

    fitted_on = ("train", "val")

    def obstacle(self, bench: Bench) -> str | None:
        """Needs classes that training rows have too, and labels in `val`, which is then not tested."""
        if bench.data.split == "val":
            return "val chooses its weight decay, so it cannot be tested there"
        return _strange(bench) or _unlabelled(bench, "val")

    def scales(self, bench: Bench) -> dict[ProbeMetric, Scale]:
        """Chance among the classes of the training rows."""
        return {"linear_top1": of_classes(bench.data.train, bench.data.tested)}

    def measure(self, bench: Bench, view: View) -> Values:
        """Top-1."""
        train, val, tested = (self._rows(bench, view, split) for split in ("train", "val", bench.data.split))
        return {("linear_top1", None): linear_probe(train, val, tested).top1}

    def _rows(self, bench: Bench, view: View, split: str) -> Rows:
        part, token, size = bench.data.parts[split], bench.config.token, bench.config.batch_size
        images = view.images[split][part.labelled]
        features = global_features(bench.encoder, images, view.submodel, token=token, batch_size=size)
        return Rows(features, part.classes[part.labelled])


class Segments(Task):
    """Which class, at every pixel, by a linear layer on patch tokens."""

    fitted_on = ("train",)

    def obstacle(self, bench: Bench) -> str | None:
        """Needs a class number at every pixel."""
        return _without_column(bench, SEGMENTS)

    def scales(self, bench: Bench) -> dict[ProbeMetric, Scale]:
        """One class everywhere."""
        mean_iou, accuracy = of_segments(bench.dense["train"], bench.dense[bench.data.split])
        return {"mean_iou": mean_iou, "pixel_accuracy": accuracy}

    def measure(self, bench: Bench, view: View) -> Values:
        """mIoU and the share of pixels."""
        train, tested = bench.dense["train"], bench.dense[bench.data.split]
        seen, unseen = _patches(bench, view)
        config = ProbeConfig(steps=bench.config.dense_steps)
        score = probe_segments(seen, train.segments, unseen, tested.segments, train.segment_names, config)
        return {("mean_iou", None): score.mean_iou, ("pixel_accuracy", None): score.pixel_accuracy}


class Depth(Task):
    """How far, at every pixel, by a linear layer on patch tokens."""

    fitted_on = ("train",)

    def obstacle(self, bench: Bench) -> str | None:
        """Needs some known distances on both sides."""
        if reason := _without_column(bench, DEPTH) or _without_column(bench, SEGMENTS):
            return reason
        unknown = [split for split in ("train", bench.data.split) if not _depth_mm(bench, split).any()]
        return f"no pixel of {unknown[0]} has a known depth" if unknown else None

    def scales(self, bench: Bench) -> dict[ProbeMetric, Scale]:
        """One distance everywhere."""
        return {"depth_rmse_m": of_depth(_depth_mm(bench, "train"), _depth_mm(bench, bench.data.split))}

    def measure(self, bench: Bench, view: View) -> Values:
        """RMSE."""
        train_mm, tested_mm = _depth_mm(bench, "train"), _depth_mm(bench, bench.data.split)
        seen, unseen = _patches(bench, view)
        config = ProbeConfig(steps=bench.config.dense_steps, max_depth_m=float(train_mm.max()) / 1000)
        return {("depth_rmse_m", None): probe_depth(seen, train_mm, unseen, tested_mm, config).rmse_m}


TASKS: dict[ProbeTask, Task] = {
    "zero_shot": ZeroShot(),
    "captions": Captions(synthetic=False),
    "synthetic_captions": Captions(synthetic=True),
    "knn": Neighbours(),
    "linear": Linear(),
    "segments": Segments(),
    "depth": Depth(),
}


def embed(
    bench: Bench, images: Images, submodel: Submodel, token: GlobalToken = "cls_token"
) -> Float[np.ndarray, "image dim"]:
    """Full-width embeddings by one submodel."""
    size = bench.config.batch_size
    return image_embeddings(bench.encoder, images, [submodel], token=token, batch_size=size)[submodel]


def synthetic_caption_token(encoder: Encoder) -> GlobalToken:
    """The global token by whose embedding images and synthetic captions find each other: the one TIPS trains for it.

    A first register behind a single class token (DINOv2) is no second class token.
    """
    return "second_cls_token" if encoder.config.vision.num_cls_tokens == 2 else "cls_token"


def _patches(bench: Bench, view: View) -> tuple[Tensor, Tensor]:
    """Features of the training images and of the tested ones."""
    token, size = bench.config.token, bench.config.batch_size
    train, tested = (
        patch_features(bench.encoder, view.images[split], view.submodel, token=token, batch_size=size)
        for split in ("train", bench.data.split)
    )
    return train, tested


def _depth_mm(bench: Bench, split: str) -> np.ndarray:
    depth_mm = bench.dense[split].depth_mm
    assert depth_mm is not None
    return depth_mm


def _mute(bench: Bench) -> str | None:
    speaks = bench.tokenizer is not None and bench.encoder.text_space is not None
    return None if speaks else "the model has no text tower"


def _unlabelled(bench: Bench, split: str) -> str | None:
    return None if len(bench.data.parts[split].labelled) else f"no image of {split} has a label"


def _strange(bench: Bench) -> str | None:
    """Why training rows cannot tell the classes of the tested ones."""
    if reason := _unlabelled(bench, "train") or _unlabelled(bench, bench.data.split):
        return reason
    train, tested = bench.data.train, bench.data.tested
    shared = np.isin(tested.classes[tested.labelled], train.classes[train.labelled]).any()
    return None if shared else f"no class of {bench.data.split} has images in train"


def _without_column(bench: Bench, column: str) -> str | None:
    if column not in dense_columns(bench.data.source):
        return f"the source has no column {column!r}"
    return None if len(bench.data.train) else "train has no images of these domains"
