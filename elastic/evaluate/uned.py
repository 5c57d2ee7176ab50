"""UnED's protocol: queries of every domain search one index that merges all domains.

A domain's score is the mean over its queries. Two averages stand beside the domains: `mean`, the unweighted mean over
domains (macro), which is UnED's headline, and `all`, the mean over all queries (micro).
Source: UnED (arXiv 2309.01858) section 4.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from elastic.evaluate.dataset import CaptionQueries, RetrievalSet
from elastic.evaluate.metrics import Judged, judge
from elastic.profile.tables import ALL, MEAN


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Retrieval quality over some queries, both in [0, 1]."""

    recall_at_1: float
    mmp_at_5: float
    num_queries: int


def image_retrieval(
    query: Float[np.ndarray, "item dim"], index: Float[np.ndarray, "item dim"], data: RetrievalSet
) -> dict[str, Score]:
    """Scores by domain, and both averages: every image against all others.

    `query` and `index` embed the same items; they differ when two submodels made them.
    """
    judged = judge(query, data.classes[:, None], index, data.classes, exclude=np.arange(len(data)))
    return by_domain(judged, data.domains)


def text_to_image(
    query: Float[np.ndarray, "query dim"],
    index: Float[np.ndarray, "item dim"],
    captions: CaptionQueries,
    data: RetrievalSet,
) -> dict[str, Score]:
    """Scores by domain, and both averages: a caption finds any image of its class."""
    return by_domain(judge(query, captions.classes, index, data.classes), captions.domains)


def by_domain(judged: Judged, domains: Sequence[str]) -> dict[str, Score]:
    """Per-query results as the mean of each domain, the mean of those, and the mean over all queries."""
    of_query = np.array(domains)
    scores = {name: _score(judged[of_query == name]) for name in sorted(set(domains))}
    macro = Score(
        recall_at_1=float(np.mean([score.recall_at_1 for score in scores.values()])),
        mmp_at_5=float(np.mean([score.mmp_at_5 for score in scores.values()])),
        num_queries=len(domains),
    )
    return scores | {MEAN: macro, ALL: _score(judged)}


def _score(judged: Judged) -> Score:
    return Score(recall_at_1=judged.recall_at_1, mmp_at_5=judged.mmp_at_5, num_queries=len(judged.first_is_relevant))
