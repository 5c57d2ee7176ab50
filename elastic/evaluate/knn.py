"""Classification by nearest neighbours: how well classes lie together, with nothing trained.

Features of both sides are L2-normalised and compared by cosine, exactly. At k = 1 a query gets the class of its
nearest neighbour. At k = 20 each of the 20 nearest votes for its class with weight `exp(cosine / 0.07)`, and the class
with the most weight wins; of equal classes the lowest number. A query whose class the index lacks counts as wrong.

Sources: 1-NN on every embedding prefix as in MRL (arXiv 2205.13147); the weighted vote and its temperature from
instance discrimination (arXiv 1805.01978), as DINO (arXiv 2104.14294) evaluates.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from elastic.evaluate.embed import truncate
from elastic.evaluate.metrics import nearest

VOTERS = 20
TEMPERATURE = 0.07

_BLOCK = 1024  # queries whose neighbours' features are held at once


@dataclass(frozen=True, kw_only=True, slots=True)
class KnnScore:
    """Share of queries that got their own class, in [0, 1]."""

    top1_of_1: float
    """By the nearest neighbour alone."""
    top1_of_20: float
    """By the weighted vote of the 20 nearest, or of the whole index where it is smaller."""
    num_queries: int


def knn(
    index: Float[np.ndarray, "item dim"],
    index_classes: Int[np.ndarray, " item"],
    query: Float[np.ndarray, "query dim"],
    query_classes: Int[np.ndarray, " query"],
) -> KnnScore:
    """Classify every query by an index of other images; features need not be normalised."""
    shares = [float((classify(index, index_classes, query, k) == query_classes).mean()) for k in (1, VOTERS)]
    return KnnScore(top1_of_1=shares[0], top1_of_20=shares[1], num_queries=len(query))


def classify(
    index: Float[np.ndarray, "item dim"],
    index_classes: Int[np.ndarray, " item"],
    query: Float[np.ndarray, "query dim"],
    k: int,
    temperature: float = TEMPERATURE,
) -> Int[np.ndarray, " query"]:
    """The class of each query by the weighted vote of its `k` nearest, or of all items where there are fewer."""
    index, query = truncate(index, index.shape[1]), truncate(query, query.shape[1])
    neighbours = nearest(query, index, min(k, len(index)))
    numbers, dense = np.unique(index_classes, return_inverse=True)
    found = np.empty(len(query), index_classes.dtype)
    for start in range(0, len(query), _BLOCK):
        rows = slice(start, start + _BLOCK)
        cosines = np.einsum("qd,qkd->qk", query[rows], index[neighbours[rows]])
        votes = np.zeros((len(cosines), len(numbers)))
        # Relative to the nearest, so that the exponential stays in range; the winner is the same.
        weights = np.exp((cosines - cosines[:, :1]) / temperature)
        np.add.at(votes, (np.arange(len(cosines))[:, None], dense[neighbours[rows]]), weights)
        found[rows] = numbers[votes.argmax(axis=1)]
    return found
