"""Features and batches given by a few numbers."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from elastic.batch import Batch, Captions, Features, Passes

MakePasses = Callable[..., Passes]
MakeBatch = Callable[..., Batch]


def passes(embedding: Tensor | Sequence, text: Tensor | Sequence | None = None) -> Passes:
    rows = torch.as_tensor(embedding)
    clean = Features(
        embedding=rows,
        cls_token=rows.new_zeros(len(rows), 2),
        patch_tokens=rows.new_zeros(len(rows), 1, 2),
        text_embedding=None if text is None else torch.as_tensor(text),
    )
    return Passes(clean=clean)


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
        captions=None
        if token_rows is None or caption_index is None
        else Captions(tokens=token_rows, mask=token_rows != 0, index=torch.tensor(caption_index)),
    )


@pytest.fixture
def make_passes() -> MakePasses:
    """`Passes` of given image, and perhaps text, embeddings."""
    return passes


@pytest.fixture
def make_batch() -> MakeBatch:
    """A `Batch` of as many rows with given labels or captions."""
    return batch
