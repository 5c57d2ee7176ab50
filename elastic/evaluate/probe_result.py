"""What `elastic probe` found, as a value: scores by granularity and width, and what they are to be compared with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from elastic.errors import ElasticError, ProfileError
from elastic.evaluate.features import GlobalToken
from elastic.profile.provenance import Provenance
from elastic.submodel import Space, Submodel

PROBES = "probes.json"

ProbeTask: TypeAlias = Literal["zero_shot", "captions", "synthetic_captions", "knn", "linear", "segments", "depth"]
"""One protocol of docs/evaluation.md."""
ProbeMetric: TypeAlias = Literal[
    "zero_shot_top1",
    "image_to_caption",
    "caption_to_image",
    "image_to_synthetic_caption",
    "synthetic_caption_to_image",
    "knn_1_top1",
    "knn_20_top1",
    "linear_top1",
    "mean_iou",
    "pixel_accuracy",
    "depth_rmse_m",
]

_HOW = "run `elastic probe`"


@dataclass(frozen=True, slots=True)
class MetricKind:
    """How a metric is read."""

    task: ProbeTask
    label: str
    by_width: bool
    """Whether it is measured on the embedding, at every width, or on tokens, which have one width."""
    floor: str
    """What `Scale.floor` is the score of."""
    tested: str
    """What `Scale.num_tested` counts."""
    choices: str = ""
    """What `Scale.num_choices` counts; empty where nothing is chosen."""


CHANCE = "chance"

METRIC_KINDS: dict[ProbeMetric, MetricKind] = {
    "zero_shot_top1": MetricKind("zero_shot", "zero-shot top-1", True, CHANCE, "images", "names"),
    "image_to_caption": MetricKind("captions", "image to caption R@1", True, CHANCE, "images", "captions"),
    "caption_to_image": MetricKind("captions", "caption to image R@1", True, CHANCE, "captions", "images"),
    "image_to_synthetic_caption": MetricKind(
        "synthetic_captions", "image to synthetic caption R@1", True, CHANCE, "images", "captions"
    ),
    "synthetic_caption_to_image": MetricKind(
        "synthetic_captions", "synthetic caption to image R@1", True, CHANCE, "captions", "images"
    ),
    "knn_1_top1": MetricKind("knn", "1-NN top-1", True, CHANCE, "images", "classes"),
    "knn_20_top1": MetricKind("knn", "20-NN top-1", True, CHANCE, "images", "classes"),
    "linear_top1": MetricKind("linear", "linear top-1", False, CHANCE, "images", "classes"),
    "mean_iou": MetricKind("segments", "linear mIoU", False, "always the commonest class", "pixels", "classes"),
    "pixel_accuracy": MetricKind(
        "segments", "linear pixel accuracy", False, "always the commonest class", "pixels", "classes"
    ),
    "depth_rmse_m": MetricKind("depth", "depth RMSE, m (less is better)", False, "always the mean", "pixels"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeScore:
    """One number."""

    metric: ProbeMetric
    submodel: Submodel
    embed_dim: int | None
    """None for what is measured on tokens."""
    value: float
    """In [0, 1]; for depth in metres."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """What a metric's numbers are to be compared with; the same for every encoder."""

    floor: float
    """What a guess, or the best constant answer, reaches."""
    num_tested: int
    """Images, captions or pixels that the score is over."""
    num_choices: int | None = None
    """Answers to choose from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probes:
    """One run of `elastic probe`."""

    run_name: str
    space: Space
    source: str
    """Location of the data."""
    domains: tuple[str, ...]
    split: str
    """What was tested; classifiers were fitted on `train`."""
    class_names: str
    """Where zero-shot took the classes' names from."""
    token: GlobalToken
    """The global token of the linear and dense probes."""
    synthetic_caption_token: GlobalToken
    """The global token by whose embedding images and synthetic captions find each other."""
    num_images: Mapping[str, int]
    """Images that were read, by split."""
    max_images: int
    """No more of a split were read."""
    scores: tuple[ProbeScore, ...]
    untrained: tuple[ProbeScore, ...]
    """The same of the full submodel of an encoder of this shape with fresh weights; empty where it was left out."""
    scales: Mapping[ProbeMetric, Scale]
    """Those of the metrics that were measured, in the order of `METRIC_KINDS`."""
    not_measured: Mapping[ProbeTask, str]
    """Tasks that data or model did not allow, and why."""
    provenance: Provenance

    def value(self, metric: ProbeMetric, submodel: Submodel, embed_dim: int | None = None) -> float:
        """One score; where the metric has widths, by default at the full one.

        Raises:
            ProfileError: it was not measured.
        """
        return self._value(self.scores, metric, submodel, embed_dim)

    def untrained_value(self, metric: ProbeMetric, embed_dim: int | None = None) -> float:
        """What fresh weights reach; where the metric has widths, by default at the full one.

        Raises:
            ProfileError: it was not measured.
        """
        return self._value(self.untrained, metric, self.space.full, embed_dim)

    def standard_error(self, metric: ProbeMetric, submodel: Submodel, embed_dim: int | None = None) -> float | None:
        """Of a share of queries, taken as independent draws; None for pixels, whose neighbours are alike."""
        if METRIC_KINDS[metric].tested == "pixels":
            return None
        share = self.value(metric, submodel, embed_dim)
        return (share * (1 - share) / self.scales[metric].num_tested) ** 0.5

    def save(self, path: Path) -> None:
        """Write JSON that `load` reads back."""
        numbers = {"scores": _to_json(self.scores), "untrained": _to_json(self.untrained)}
        text = json.dumps(asdict(self) | numbers, indent=2)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Probes":
        """Read what `save` wrote.

        Raises:
            ProfileError: no such file, or not one of this version.
        """
        if not path.is_file():
            raise ProfileError("probes", f"{path} does not exist", f"{_HOW} first")
        try:
            return cls._from_json(json.loads(path.read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError, ElasticError) as error:
            problem = f"{path} does not hold probes of this version ({error})"
            raise ProfileError("probes", problem, f"{_HOW} again") from error

    def _value(
        self, scores: Sequence[ProbeScore], metric: ProbeMetric, submodel: Submodel, embed_dim: int | None
    ) -> float:
        width = (embed_dim or self.space.full_embed_dim) if METRIC_KINDS[metric].by_width else None
        for score in scores:
            if (score.metric, score.submodel, score.embed_dim) == (metric, submodel, width):
                return score.value
        raise ProfileError("probes", f"no {metric} of {submodel} at embed_dim {width}", _HOW)

    @classmethod
    def _from_json(cls, values: dict[str, Any]) -> "Probes":
        space = values["space"]
        read = {
            "space": Space(space["depth"], tuple(space["ffn_dims"]), tuple(space["embed_dims"])),
            "domains": tuple(values["domains"]),
            "scores": _scores(values["scores"]),
            "untrained": _scores(values["untrained"]),
            "scales": {metric: Scale(**scale) for metric, scale in values["scales"].items()},
            "provenance": Provenance.from_json(json.dumps(values["provenance"])),
        }
        return cls(**values | read)


def _to_json(scores: Sequence[ProbeScore]) -> list[dict[str, Any]]:
    return [asdict(score) | {"submodel": str(score.submodel)} for score in scores]


def _scores(values: Sequence[dict[str, Any]]) -> tuple[ProbeScore, ...]:
    read = ({**score, "submodel": Submodel.parse(score["submodel"])} for score in values)
    return tuple(ProbeScore(**score) for score in read)
