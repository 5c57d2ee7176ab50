"""The compatibility matrix: how well queries of one submodel find what another submodel indexed, at every width.

Submodels of one checkpoint share an embedding space, so a query may be embedded by a smaller submodel than the index.
What that costs is measured here, never assumed. Measured combinations:

- every granularity as query against every granularity as index, at every width;
- every Mix'n'Match candidate as query against the full model's index, at every width (what `elastic.select` reads),
  and against its own index at full width (the usual Mix'n'Match curve);
- with a text tower: every text submodel against the full image index at every width, and against the image index of
  the same granularity.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from elastic.evaluate.dataset import CaptionQueries
from elastic.evaluate.embed import EmbeddedImages, Embeddings, truncate
from elastic.evaluate.uned import Score, image_retrieval, text_to_image
from elastic.profile.tables import QualityRow, Task
from elastic.submodel import Space, Submodel


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: who embeds the queries, who the index, and the width kept of both."""

    query: Submodel
    index: Submodel
    embed_dim: int


def image_cells(space: Space) -> list[Cell]:
    """The image-to-image combinations to measure, each once."""
    uniform = list(space.granularities.values())
    cells = [Cell(query, index, width) for query in uniform for index in uniform for width in space.embed_dims]
    cells += [Cell(query, space.full, width) for query in space.mixes() for width in space.embed_dims]
    cells += [Cell(mix, mix, space.full_embed_dim) for mix in space.mixes()]
    return list(dict.fromkeys(cells))


def text_cells(text_space: Space, space: Space) -> list[Cell]:
    """The text-to-image combinations to measure, each once; queries are submodels of the text space."""
    cells = [Cell(query, space.full, width) for query in text_space.mixes() for width in space.embed_dims]
    for granularity in space.granularities.values():
        query = space.translate(granularity, text_space)
        cells += [Cell(query, granularity, width) for width in space.embed_dims]
    return list(dict.fromkeys(cells))


def image_rows(embedded: EmbeddedImages, space: Space, on_cell: Callable[[], None] = lambda: None) -> list[QualityRow]:
    """Measure `image_cells`; `embedded` holds every submodel of `space.mixes`."""
    cut = _cutter(embedded.by_submodel)
    rows: list[QualityRow] = []
    for cell in image_cells(space):
        scores = image_retrieval(cut(cell.query, cell.embed_dim), cut(cell.index, cell.embed_dim), embedded.data)
        rows += _rows("image_retrieval", cell, scores)
        on_cell()
    return rows


def text_rows(
    captions: CaptionQueries,
    queries: Embeddings,
    embedded: EmbeddedImages,
    spaces: tuple[Space, Space],
    on_cell: Callable[[], None] = lambda: None,
) -> list[QualityRow]:
    """Measure `text_cells`; `spaces` are the text tower's and the image tower's."""
    cut_text, cut_image = _cutter(queries), _cutter(embedded.by_submodel)
    rows: list[QualityRow] = []
    for cell in text_cells(*spaces):
        query, index = cut_text(cell.query, cell.embed_dim), cut_image(cell.index, cell.embed_dim)
        rows += _rows("text_to_image", cell, text_to_image(query, index, captions, embedded.data))
        on_cell()
    return rows


def _cutter(embeddings: Embeddings) -> Callable[[Submodel, int], Float[np.ndarray, "item embed_dim"]]:
    """Truncated embeddings, those of the last few combinations kept."""
    return lru_cache(maxsize=8)(lambda submodel, embed_dim: truncate(embeddings[submodel], embed_dim))


def _rows(task: Task, cell: Cell, scores: dict[str, Score]) -> Iterator[QualityRow]:
    for domain, score in scores.items():
        yield QualityRow(
            task=task,
            query_submodel=cell.query,
            index_submodel=cell.index,
            embed_dim=cell.embed_dim,
            domain=domain,
            recall_at_1=score.recall_at_1,
            mmp_at_5=score.mmp_at_5,
            num_queries=score.num_queries,
        )
