"""How models trained on scenes are measured: what they know of the whole image, of its words, and of its patches."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from elastic.batch import Features
from elastic.data.dense import DenseSet, load_dense_set
from elastic.evaluate.dense import probe_segments
from elastic.evaluate.features import read_images
from elastic.evaluate.knn import knn
from elastic.evaluate.linear import Rows, linear_probe
from elastic.evaluate.text_retrieval import caption_retrieval
from elastic.model.vit import embed_second
from experiments.harness import Metrics, Trained

DOMAINS = ("scenes",)
SPLITS = ("train", "val", "test")
WEIGHT_DECAYS = (1e-3, 1e-2, 1e-1)
"""Of the linear probe: those of the grid that L-BFGS settles for in seconds."""


def measure(trained: Trained) -> Metrics:
    """The full submodel on the test split, with features of the training split where a protocol needs some.

    `kNN` and `linear`: top-1 of the salient object's class, by 20 neighbours and by logistic regression. `mIoU`: linear
    probe of patches. `I>T` and `T>I`: R@1 among pairs, with the web's caption and with the detailed one. A 2 behind a
    name: of the second class token.
    """
    sets = {split: load_dense_set("scenes", split, DOMAINS) for split in SPLITS}
    images = {split: read_images(data.source, data.row_ids, trained.preprocess) for split, data in sets.items()}
    seen = {split: _see(trained, part) for split, part in images.items()}
    classes = {split: np.array(_column(data, "label")) for split, data in sets.items()}
    rows = {split: Rows(features.cls_token.numpy(), classes[split]) for split, features in seen.items()}
    patches = {split: _patches(features) for split, features in seen.items()}
    names = sets["train"].segment_names
    segments = probe_segments(patches["train"], sets["train"].segments, patches["test"], sets["test"].segments, names)
    metrics = {
        "kNN": _knn(rows["train"], rows["test"]),
        "linear": linear_probe(rows["train"], rows["val"], rows["test"], WEIGHT_DECAYS).top1,
        "mIoU": segments.mean_iou,
    }
    second = [seen[split].second_cls_token for split in ("train", "test")]
    if second[0] is not None and second[1] is not None:
        metrics["kNN 2"] = _knn(Rows(second[0].numpy(), classes["train"]), Rows(second[1].numpy(), classes["test"]))
    return metrics | _captions(trained, seen["test"], sets["test"])


def _captions(trained: Trained, features: Features, data: DenseSet) -> Metrics:
    """Both captions for each embedding: that of the first class token, and that of the second where there is one."""
    if trained.tokenizer is None:
        return {}
    captions = {
        "web": [[text] for text in _column(data, "caption")],
        "detailed": [texts[:1] for texts in _column(data, "synthetic_captions")],
    }
    metrics: Metrics = {}
    for suffix, embedding in (("", features.embedding), (" 2", features.second_embedding)):
        if embedding is None:
            continue
        embedded = {trained.encoder.space.full: embedding.numpy()}
        for kind, texts in captions.items():
            score = caption_retrieval(trained.encoder, trained.tokenizer, embedded, texts)[-1]
            metrics |= {f"I>T {kind}{suffix}": score.image_to_text, f"T>I {kind}{suffix}": score.text_to_image}
    return metrics


def _see(trained: Trained, images: Tensor) -> Features:
    with torch.no_grad():
        encoder, full = trained.encoder, trained.encoder.space.full
        parts = [embed_second(encoder.image, encoder.see(part, full)) for part in images.split(256)]
    return Features(
        embedding=torch.cat([part.embedding for part in parts]),
        cls_token=torch.cat([part.cls_token for part in parts]),
        patch_tokens=torch.cat([part.patch_tokens for part in parts]),
        second_embedding=_joined([part.second_embedding for part in parts]),
        second_cls_token=_joined([part.second_cls_token for part in parts]),
    )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def _patches(features: Features) -> Tensor:
    """As `features.patch_features`."""
    tokens = features.patch_tokens
    return torch.cat([tokens, features.cls_token[:, None].expand_as(tokens)], dim=2)


def _knn(index: Rows, query: Rows) -> float:
    return knn(index.features, index.classes, query.features, query.classes).top1_of_20


def _column(data: DenseSet, name: str) -> list[Any]:
    return data.source.metadata[name].take(data.row_ids).to_pylist()
