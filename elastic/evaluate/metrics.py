"""Retrieval metrics in their exact UnED definitions, on numpy arrays.

For a query q and an index item j, `rel_q(j) = 1` iff j has q's domain *and* one of q's labels. Domain and label
together are one integer here, the class (`class_numbers`), so labels that repeat across domains cannot be confused.
With `n_q` relevant items in the index (q itself excluded by its id) and `m_q = min(5, n_q)`:

    R@1   = mean over q of rel_q(first neighbour)
    mMP@5 = mean over q of (1 / m_q) * sum of rel_q over the first m_q neighbours; 0 when n_q = 0

Queries without a relevant item stay in the denominator of both. Search is exact, by dot product; of equal scores the
lower index position comes first.
Source: UnED (arXiv 2309.01858) and the evaluator of nikosips/Universal-Image-Embeddings. Deviation: a query that is
itself in the index is excluded by its position, not by dropping the first neighbour, so exact duplicates do not count
a query as its own match; and scores are not rounded before they are averaged.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

NO_CLASS = -1
"""Pads a query's list of classes; equal to no class of an index item."""
NO_EXCLUSION = -1
"""Stands for "this query is not in the index" among the positions to leave out."""
DEPTH = 5
"""The k of mMP@k: how many neighbours are judged at most."""

_BLOCK = 1024  # queries per score matrix: bounds memory at 4 bytes * 1024 * index size


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Per-query results, before any averaging."""

    first_is_relevant: Float[np.ndarray, " query"]
    """1 or 0; an expectation where the ranking is random."""
    modified_precision: Float[np.ndarray, " query"]
    """The query's term of mMP@5, in [0, 1]."""
    num_relevant: Int[np.ndarray, " query"]
    """`n_q`: relevant items of the index, the query itself not counted."""

    @property
    def recall_at_1(self) -> float:
        """Share of queries whose first neighbour is relevant."""
        return float(self.first_is_relevant.mean())

    @property
    def mmp_at_5(self) -> float:
        """Mean modified precision at 5."""
        return float(self.modified_precision.mean())

    def __getitem__(self, queries: np.ndarray) -> "Judged":
        """The same results for a part of the queries."""
        return Judged(
            first_is_relevant=self.first_is_relevant[queries],
            modified_precision=self.modified_precision[queries],
            num_relevant=self.num_relevant[queries],
        )


def judge(
    query: Float[np.ndarray, "query dim"],
    query_classes: Int[np.ndarray, "query labels"],
    index: Float[np.ndarray, "item dim"],
    index_classes: Int[np.ndarray, " item"],
    exclude: Int[np.ndarray, " query"] | None = None,
) -> Judged:
    """Search every query in the index and judge its first five neighbours.

    Args:
        query: L2-normalised embeddings.
        query_classes: the distinct acceptable classes of each query, padded with `NO_CLASS`.
        index: L2-normalised embeddings.
        index_classes: the class of each item.
        exclude: position in the index of each query itself, `NO_EXCLUSION` where it is not in the index.
    """
    neighbours = nearest(query, index, DEPTH, exclude)
    found = neighbours >= 0  # an index of fewer than five others ends early
    relevant = _is_relevant(query_classes, index_classes[np.maximum(neighbours, 0)]) & found
    num_relevant = _count_relevant(query_classes, index_classes, exclude)
    judged_depth = np.minimum(num_relevant, DEPTH)
    counted = relevant & (np.arange(DEPTH) < judged_depth[:, None])
    return Judged(
        first_is_relevant=relevant[:, 0].astype(np.float64),
        modified_precision=counted.sum(axis=1) / np.maximum(judged_depth, 1),
        num_relevant=num_relevant,
    )


def nearest(
    query: Float[np.ndarray, "query dim"],
    index: Float[np.ndarray, "item dim"],
    k: int,
    exclude: Int[np.ndarray, " query"] | None = None,
) -> Int[np.ndarray, "query k"]:
    """Positions of the `k` items of largest dot product, best first; -1 where the index has no more items.

    Exact, and equal scores are ordered by position. `exclude` is as in `judge`.
    """
    out = np.full((len(query), k), -1, dtype=np.int64)
    for start in range(0, len(query), _BLOCK):
        rows = slice(start, start + _BLOCK)
        scores = query[rows] @ index.T
        left_out = np.full(len(scores), NO_EXCLUSION) if exclude is None else exclude[rows]
        inside = np.flatnonzero(left_out != NO_EXCLUSION)
        scores[inside, left_out[inside]] = -np.inf
        top = _top_positions(scores, min(k, scores.shape[1]))
        top[np.take_along_axis(scores, top, axis=1) == -np.inf] = -1
        out[rows, : top.shape[1]] = top
    return out


def class_numbers(domains: Iterable[str], labels: Iterable[str]) -> Int[np.ndarray, " item"]:
    """One integer per distinct (domain, label): what "the same class" means in a merged index."""
    pairs = list(zip(domains, labels, strict=True))
    numbers = {pair: number for number, pair in enumerate(sorted(set(pairs)))}
    return np.array([numbers[pair] for pair in pairs], dtype=np.int64)


def pad_classes(classes: Sequence[Sequence[int]]) -> Int[np.ndarray, "query labels"]:
    """Lists of acceptable classes as one array, padded with `NO_CLASS`."""
    out = np.full((len(classes), max(map(len, classes), default=1)), NO_CLASS, dtype=np.int64)
    for row, values in enumerate(classes):
        out[row, : len(values)] = values
    return out


def _top_positions(scores: Float[np.ndarray, "query item"], k: int) -> Int[np.ndarray, "query k"]:
    """The k largest of each row by (-score, position)."""
    candidates = np.sort(np.argpartition(scores, -k, axis=1)[:, -k:], axis=1)
    values = np.take_along_axis(scores, candidates, axis=1)
    # Where items beyond the k-th equal it, argpartition kept an arbitrary one of them: sort those rows in full.
    tied = np.flatnonzero((scores >= values.min(axis=1, keepdims=True)).sum(axis=1) > k)
    order = np.argsort(-values, axis=1, kind="stable")  # candidates ascend, so stable means lower position first
    top = np.take_along_axis(candidates, order, axis=1)
    top[tied] = np.argsort(-scores[tied], axis=1, kind="stable")[:, :k]
    return top


def _is_relevant(
    query_classes: Int[np.ndarray, "query labels"], classes: Int[np.ndarray, "query k"]
) -> Bool[np.ndarray, "query k"]:
    return (classes[:, :, None] == query_classes[:, None, :]).any(axis=2)


def _count_relevant(
    query_classes: Int[np.ndarray, "query labels"],
    index_classes: Int[np.ndarray, " item"],
    exclude: Int[np.ndarray, " query"] | None,
) -> Int[np.ndarray, " query"]:
    """Index items of one of the query's classes, without the query itself."""
    sizes = np.bincount(index_classes, minlength=int(query_classes.max(initial=0)) + 1)
    counts = np.where(query_classes == NO_CLASS, 0, sizes[query_classes]).sum(axis=1)
    if exclude is None:
        return counts
    own = index_classes[np.maximum(exclude, 0)][:, None]
    counts_itself = _is_relevant(query_classes, own)[:, 0] & (exclude != NO_EXCLUSION)
    return counts - counts_itself
