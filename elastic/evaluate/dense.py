"""Linear probes of frozen patch features: which class, and how far, at every pixel.

The feature of a patch is its token after the last block concatenated with the image's global token
(`features.patch_features`), whitened by the training set's mean and covariance. One linear layer reads it.

- Segmentation: class logits of each patch, upsampled bilinearly to the label's size, cross-entropy. Reported are
  pixel accuracy and mIoU: the mean, over the classes that occur in the ground truth of the tested split (background
  included), of intersection over union, counted over all pixels of the split together.
- Depth: 256 logits of each patch, `depth = sum(centre * (relu(logit) + 0.001)) / sum(relu(logit) + 0.001)` with
  centres evenly spaced from 0.001 to `max_depth_m`. Reported is the RMSE in metres over all known pixels together.

Sources: TIPS (arXiv 2410.16512) for tasks and metrics, its published depth head for the formula; SigLIP 2
(arXiv 2502.14786) for the concatenation. Not fixed by the papers and chosen here: the optimiser; whitening, which
leaves the linear functions to choose from as they are but lets a few hundred updates come near the best of them,
however unequal and correlated the features; the mean squared error that the depth probe minimises; that depth, not
its 256 logits, is upsampled; and that an update looks at a random part of the pixels.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Integer, Shaped
from torch import Tensor, nn

from elastic.data.dense import DenseSet
from elastic.data.schema import DEPTH
from elastic.errors import ConfigError, DataError
from elastic.evaluate.features import GlobalToken, patch_features, read_images
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.submodel import Submodel

NUM_BINS = 256
LEAST_WEIGHT = 0.001
"""Added to every bin's weight, so that a depth exists where all logits are negative."""
NEAREST_M = 0.001
"""Centre of the first bin in metres."""

RIDGE = 1e-3
"""Added to the covariance, of unit diagonal, so that directions that hardly vary are not blown up to noise."""

_BLOCK = 16384  # patches whose covariance is summed in float64 at once


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig:
    """How a probe is trained: AdamW on minibatches of images, its learning rate falling to zero along a cosine."""

    steps: int = 400
    """Updates."""
    batch_size: int = 32
    """Images of an update."""
    pixels: int = 512
    """Pixels of each of them, drawn anew for every update: a sample of the loss over all, at a fraction of its time."""
    lr: float = 1e-2
    """Learning rate of the first update."""
    weight_decay: float = 1e-2
    """AdamW's decay of the weights; biases are left alone."""
    max_depth_m: float = 10.0
    """Centre of the last depth bin in metres; NYUv2's range is 10."""
    seed: int = 0
    """Of the first weights, the minibatches and the pixels that they look at."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.pixels) < 1:
            raise ConfigError("probe", self, "needs steps, batch_size and pixels of at least 1")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ConfigError("probe", self, "needs lr above 0 and weight_decay of at least 0")
        if self.max_depth_m <= NEAREST_M:
            raise ConfigError("probe.max_depth_m", self.max_depth_m, f"must be above {NEAREST_M}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentationScore:
    """Quality of the predicted classes, all in [0, 1]."""

    mean_iou: float
    """Over the classes that occur in the ground truth, background included."""
    pixel_accuracy: float
    iou: dict[str, float]
    """By class name, those that occur in the ground truth."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DepthScore:
    """Error of the predicted distances."""

    rmse_m: float
    num_pixels: int
    """Pixels of known depth that were judged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseScores:
    """Both probes of one submodel."""

    segmentation: SegmentationScore
    depth: DepthScore | None
    """None where the sets have no depth."""


def probe_dense(
    encoder: Encoder,
    preprocess: Preprocess,
    train: DenseSet,
    test: DenseSet,
    submodels: Sequence[Submodel],
    config: ProbeConfig = ProbeConfig(),
    token: GlobalToken = "cls_token",
) -> dict[Submodel, DenseScores]:
    """Fit on one split, test on another, every submodel of an encoder in eval mode; images are read once.

    Raises:
        DataError: the sets name their classes differently, only one of them has depth, or an image is broken.
        ConfigError: the encoder has no second class token, where that is asked for.
    """
    if train.segment_names != test.segment_names:
        raise DataError(test.source.name, "names other classes than the training set", "use splits of one set")
    if (train.depth_mm is None) != (test.depth_mm is None):
        raise DataError(test.source.name, f"only one of the two sets has {DEPTH!r}", "use splits of one set")
    images = [read_images(data.source, data.row_ids, preprocess) for data in (train, test)]
    scores: dict[Submodel, DenseScores] = {}
    for submodel in submodels:
        seen, unseen = (patch_features(encoder, part, submodel, token=token) for part in images)
        depth = None
        if train.depth_mm is not None and test.depth_mm is not None:
            depth = probe_depth(seen, train.depth_mm, unseen, test.depth_mm, config)
        segmentation = probe_segments(seen, train.segments, unseen, test.segments, train.segment_names, config)
        scores[submodel] = DenseScores(segmentation=segmentation, depth=depth)
    return scores


def probe_segments(
    train: Float[Tensor, "train patch dim"],
    train_segments: Integer[np.ndarray, "train size size"],
    test: Float[Tensor, "test patch dim"],
    test_segments: Integer[np.ndarray, "test size size"],
    names: Sequence[str],
    config: ProbeConfig = ProbeConfig(),
) -> SegmentationScore:
    """Fit the segmentation probe and judge it; labels hold class numbers, positions in `names`."""

    def loss(logits: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), wanted.long().flatten())

    probe = _PatchProbe(train, len(names), train_segments.shape[1], config.seed)
    _fit(probe, train, torch.from_numpy(train_segments).flatten(1), loss, config)
    confusion = np.zeros((len(names), len(names)), np.int64)
    wanted = test_segments.reshape(len(test), -1)
    for rows, logits in _predict(probe, test, config.batch_size):
        confusion += confusion_matrix(wanted[rows], logits.argmax(dim=2).cpu().numpy(), len(names))
    return judge_segments(confusion, names)


def probe_depth(
    train: Float[Tensor, "train patch dim"],
    train_depth_mm: Integer[np.ndarray, "train size size"],
    test: Float[Tensor, "test patch dim"],
    test_depth_mm: Integer[np.ndarray, "test size size"],
    config: ProbeConfig = ProbeConfig(),
) -> DepthScore:
    """Fit the depth probe and judge it; a depth of 0 is unknown and left out of both.

    Raises:
        DataError: the tested images have no known depth.
    """

    def loss(depth: Tensor, wanted: Tensor) -> Tensor:
        known = wanted > 0
        return torch.where(known, depth[..., 0] - wanted, 0).square().sum() / known.sum().clamp(min=1)

    def read_out(logits: Tensor) -> Tensor:
        return depth_of(logits, config.max_depth_m)[..., None]

    probe = _PatchProbe(train, NUM_BINS, train_depth_mm.shape[1], config.seed, read_out)
    _fit(probe, train, torch.from_numpy(_metres(train_depth_mm)).flatten(1), loss, config)
    wanted = _metres(test_depth_mm).reshape(len(test), -1)
    total, count = 0.0, 0
    for rows, depth in _predict(probe, test, config.batch_size):
        known = wanted[rows] > 0
        total += float(np.square(depth[..., 0].cpu().numpy() - wanted[rows], dtype=np.float64)[known].sum())
        count += int(known.sum())
    if count == 0:
        raise DataError(DEPTH, "no pixel of the tested images has a known depth", "test on images that have some")
    return DepthScore(rmse_m=(total / count) ** 0.5, num_pixels=count)


def depth_of(logits: Float[Tensor, "*patches bins"], max_depth_m: float) -> Float[Tensor, "*patches"]:
    """The expected bin centre in metres, every bin weighted by its logit where that is positive."""
    weights = logits.relu() + LEAST_WEIGHT
    centres = torch.linspace(NEAREST_M, max_depth_m, logits.shape[-1], device=logits.device)
    return weights @ centres / weights.sum(dim=-1)


def confusion_matrix(
    wanted: Integer[np.ndarray, "*pixels"], found: Integer[np.ndarray, "*pixels"], num_classes: int
) -> Int[np.ndarray, "wanted found"]:
    """How many pixels of each class (row) were predicted as each class (column)."""
    pairs = wanted.astype(np.int64) * num_classes + found
    return np.bincount(pairs.ravel(), minlength=num_classes**2).reshape(num_classes, num_classes)


def judge_segments(confusion: Int[np.ndarray, "wanted found"], names: Sequence[str]) -> SegmentationScore:
    """Intersection over union of each class that occurs in the ground truth, their mean, and pixel accuracy."""
    right, wanted = np.diag(confusion), confusion.sum(axis=1)
    union = wanted + confusion.sum(axis=0) - right
    iou = {name: float(right[i] / union[i]) for i, name in enumerate(names) if wanted[i] > 0}
    return SegmentationScore(
        mean_iou=float(np.mean(list(iou.values()))), pixel_accuracy=float(right.sum() / wanted.sum()), iou=iou
    )


class _PatchProbe(nn.Module):
    """One linear layer on whitened patch features, read out and upsampled to pixels."""

    mean: Tensor
    whitening: Tensor
    upsampling: Tensor

    def __init__(
        self,
        features: Float[Tensor, "image patch dim"],
        num_outputs: int,
        size: int,
        seed: int,
        read_out: Callable[[Tensor], Tensor] = lambda outputs: outputs,
    ) -> None:
        super().__init__()
        mean, matrix = whitening(features.flatten(0, 1))
        self.register_buffer("mean", mean)
        self.register_buffer("whitening", matrix)
        self.register_buffer("upsampling", upsampling(features.shape[1], size).to(features.device))
        self.read_out = read_out
        width = features.shape[2]
        # Outputs of unit deviation: where relu makes all bins zero from the start, no gradient reaches them.
        first = torch.randn(num_outputs, width + 1, generator=torch.Generator().manual_seed(seed)) / width**0.5
        self.weight = nn.Parameter(first[:, :-1].to(features.device))
        self.bias = nn.Parameter(first[:, -1].to(features.device))

    def forward(
        self, features: Float[Tensor, "batch patch dim"], pixels: Int[Tensor, " pixel"] | None = None
    ) -> Float[Tensor, "batch pixel value"]:
        """Values at some pixels, by default at all of them, row by row."""
        of_patches = self.read_out(F.linear(features - self.mean, self.weight @ self.whitening.T, self.bias))
        return (self.upsampling if pixels is None else self.upsampling[pixels]) @ of_patches


def whitening(
    features: Float[Tensor, "item dim"],
) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]]:
    """The mean, and the matrix by which centred features have unit variance in every direction, `RIDGE` aside."""
    std, mean = torch.std_mean(features, dim=0, correction=0)
    # A feature that never varies says nothing; its rounding errors must not be blown up to unit deviation.
    scale = torch.where(std > 1e-6, std, 1).double()
    covariance = sum((part := (rows - mean).double() / scale).T @ part for rows in features.split(_BLOCK))
    variances, directions = torch.linalg.eigh(torch.as_tensor(covariance) / len(features))
    matrix = directions / scale[:, None] / (variances.clamp(min=0) + RIDGE).sqrt()
    return mean, matrix.to(features.dtype)


def upsampling(num_patches: int, size: int) -> Float[Tensor, "pixel patch"]:
    """Bilinear interpolation (corners not aligned) from a square grid of patches to `size` x `size`, as a matrix."""
    side = math.isqrt(num_patches)
    assert side**2 == num_patches, f"{num_patches} patches are not a square"
    each_patch = torch.eye(num_patches).view(num_patches, 1, side, side)
    grown = F.interpolate(each_patch, size=(size, size), mode="bilinear", align_corners=False)
    return grown.flatten(1).T.contiguous()


def _fit(
    probe: _PatchProbe,
    features: Float[Tensor, "image patch dim"],
    labels: Shaped[Tensor, "image pixel"],
    loss: Callable[[Tensor, Tensor], Tensor],
    config: ProbeConfig,
) -> None:
    generator = torch.Generator().manual_seed(config.seed)
    groups = [{"params": [probe.weight]}, {"params": [probe.bias], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    for _ in range(config.steps):
        rows = torch.randperm(len(features), generator=generator)[: config.batch_size]
        pixels = torch.randperm(labels.shape[1], generator=generator)[: config.pixels]
        wanted = labels[rows[:, None], pixels].to(features.device)
        optimiser.zero_grad()
        loss(probe(features[rows.to(features.device)], pixels.to(features.device)), wanted).backward()
        optimiser.step()
        schedule.step()


def _predict(
    probe: _PatchProbe, features: Float[Tensor, "image patch dim"], batch_size: int
) -> Iterator[tuple[slice, Float[Tensor, "batch pixel value"]]]:
    """Values at every pixel, and which images they are of."""
    for start in range(0, len(features), batch_size):
        rows = slice(start, start + batch_size)
        with torch.no_grad():
            values = probe(features[rows])
        yield rows, values


def _metres(depth_mm: Integer[np.ndarray, "image size size"]) -> Float32[np.ndarray, "image size size"]:
    return depth_mm.astype(np.float32) / 1000
