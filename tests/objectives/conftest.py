"""Features and batches given by a few numbers."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from elastic.batch import Batch, Features

MakeFeatures = Callable[..., Features]
MakeBatch = Callable[..., Batch]


def features(embedding: Tensor | Sequence, text: Tensor | Sequence | None = None) -> Features:
    rows = torch.as_tensor(embedding)
    return Features(
        embedding=rows,
        cls_token=rows.new_zeros(len(rows), 2),
        patch_tokens=rows.new_zeros(len(rows), 1, 2),
        text_embedding=None if text is None else torch.as_tensor(text),
    )


def batch(
    count: int,
    labels: Sequence[int] | None = None,
    tokens: Sequence[Sequence[int]] | None = None,
    caption_index: Sequence[int] | None = None,
) -> Batch:
    token_rows = None if tokens is None else torch.tensor(tokens)
    return Batch(
        images=torch.zeros(count, 3, 2, 2),
        row_ids=torch.arange(count),
        domains=torch.zeros(count, dtype=torch.int64),
        labels=None if labels is None else torch.tensor(labels),
        tokens=token_rows,
        token_mask=None if token_rows is None else token_rows != 0,
        caption_index=None if caption_index is None else torch.tensor(caption_index),
    )


@pytest.fixture
def make_features() -> MakeFeatures:
    """`Features` of given image, and perhaps text, embeddings."""
    return features


@pytest.fixture
def make_batch() -> MakeBatch:
    """A `Batch` of as many rows with given labels or captions."""
    return batch
