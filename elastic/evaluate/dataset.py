"""The labelled images that retrieval is measured on: one split of one data source.

Every image is a query against all the others, of every domain (UnED's merged index with query set = index set).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from elastic.data.decode import decode_all
from elastic.data.source import Source
from elastic.data.sources import open_source
from elastic.errors import DataError
from elastic.evaluate.metrics import class_numbers, pad_classes


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalSet:
    """Rows with labels. Position in these arrays is the item's id in the index."""

    source: Source
    split: str
    row_ids: Int[np.ndarray, " item"]
    domains: tuple[str, ...]
    """Domain of each item."""
    classes: Int[np.ndarray, " item"]
    """One number per (domain, label)."""
    captions: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.row_ids)

    def keep(self, mask: Bool[np.ndarray, " item"]) -> "RetrievalSet":
        """The items where the mask is True."""
        kept = np.flatnonzero(mask)
        return replace(
            self,
            row_ids=self.row_ids[kept],
            domains=tuple(self.domains[item] for item in kept),
            classes=self.classes[kept],
            captions=tuple(self.captions[item] for item in kept),
        )

    def canvases(
        self, canvas_size: int, batch_size: int
    ) -> Iterator[tuple[UInt8[Tensor, "batch 4 size size"], Bool[np.ndarray, " batch"]]]:
        """Decoded images in order, and which of them are broken (their canvas is transparent)."""
        for start in range(0, len(self), batch_size):
            encoded = self.source.read_images(self.row_ids[start : start + batch_size])
            canvases, broken = decode_all(encoded, canvas_size)
            yield torch.from_numpy(canvases), broken


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionQueries:
    """Distinct captions of a retrieval set; a caption asks for any image of its class."""

    captions: tuple[str, ...]
    domains: tuple[str, ...]
    classes: Int[np.ndarray, "query labels"]
    """Classes of that domain whose images carry the caption: usually one."""


def load_retrieval_set(location: str, split: str) -> RetrievalSet:
    """The labelled rows of a split; rows without a label are left out.

    Raises:
        DataError: the source cannot be opened, the split is empty, or fewer than two rows have a label.
    """
    source = open_source(location)
    columns = {name: source.metadata[name].to_pylist() for name in ("split", "label", "domain", "caption")}
    row_ids = [
        row
        for row, (its_split, label) in enumerate(zip(columns["split"], columns["label"], strict=True))
        if its_split == split and label is not None
    ]
    if len(row_ids) < 2:
        found = ", ".join(sorted(set(columns["split"])))
        problem = f"{len(row_ids)} labelled rows in split {split!r} (splits: {found})"
        raise DataError(location, problem, "retrieval needs at least two; choose another split")
    domains = tuple(columns["domain"][row] for row in row_ids)
    return RetrievalSet(
        source=source,
        split=split,
        row_ids=np.array(row_ids),
        domains=domains,
        classes=class_numbers(domains, [columns["label"][row] for row in row_ids]),
        captions=tuple(columns["caption"][row] for row in row_ids),
    )


def caption_queries(data: RetrievalSet) -> CaptionQueries:
    """One query per distinct (domain, caption), sorted; empty when no item has a caption."""
    wanted: dict[tuple[str, str], set[int]] = {}
    for domain, caption, number in zip(data.domains, data.captions, data.classes.tolist(), strict=True):
        if caption is not None:
            wanted.setdefault((domain, caption), set()).add(number)
    keys = sorted(wanted)
    lists: Sequence[Sequence[int]] = [sorted(wanted[key]) for key in keys]
    return CaptionQueries(
        captions=tuple(caption for _, caption in keys),
        domains=tuple(domain for domain, _ in keys),
        classes=pad_classes(lists),
    )
