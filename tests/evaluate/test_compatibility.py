import numpy as np
import pytest

from elastic.evaluate.compatibility import Cell, image_cells, image_rows, text_cells
from elastic.evaluate.dataset import load_retrieval_set
from elastic.evaluate.embed import EmbeddedImages, embed_images, truncate
from elastic.evaluate.uned import image_retrieval
from elastic.submodel import Space

from .conftest import PREPROCESS

SPACE = Space(depth=3, ffn_dims=(8, 16, 32), embed_dims=(4, 8))
TEXT_SPACE = Space(depth=2, ffn_dims=(4, 8, 16), embed_dims=(4, 8))


def test_every_pair_of_granularities_is_measured_at_every_width():
    cells = set(image_cells(SPACE))
    uniform = SPACE.granularities.values()
    assert {Cell(q, i, width) for q in uniform for i in uniform for width in SPACE.embed_dims} <= cells


def test_every_mix_is_measured_against_the_full_index_and_against_its_own():
    cells = set(image_cells(SPACE))
    for mix in SPACE.mixes():
        assert {Cell(mix, SPACE.full, width) for width in SPACE.embed_dims} <= cells
        assert Cell(mix, mix, SPACE.full_embed_dim) in cells


def test_nothing_is_measured_twice():
    for cells in (image_cells(SPACE), text_cells(TEXT_SPACE, SPACE)):
        assert len(cells) == len(set(cells))


def test_captions_of_every_text_submodel_search_the_full_index():
    cells = set(text_cells(TEXT_SPACE, SPACE))
    for query in TEXT_SPACE.mixes():
        assert {Cell(query, SPACE.full, width) for width in SPACE.embed_dims} <= cells
    smallest = Cell(TEXT_SPACE.smallest, SPACE.smallest, SPACE.full_embed_dim)
    assert smallest in cells


def test_rows_hold_what_the_protocol_gives_for_each_cell(colours, encoder):
    embedded = embed_images(encoder, load_retrieval_set(colours, "test"), PREPROCESS, list(encoder.space.mixes()))
    calls = []
    rows = image_rows(embedded, encoder.space, lambda: calls.append(None))
    assert len(calls) == len(image_cells(encoder.space))
    small, full = encoder.space.smallest, encoder.space.full
    query, index = (truncate(embedded.by_submodel[submodel], 4) for submodel in (small, full))
    expected = image_retrieval(query, index, embedded.data)
    found = {
        row.domain: row for row in rows if (row.query_submodel, row.index_submodel, row.embed_dim) == (small, full, 4)
    }
    assert {domain: row.recall_at_1 for domain, row in found.items()} == {
        domain: score.recall_at_1 for domain, score in expected.items()
    }


def test_query_and_index_submodels_are_not_swapped(colours):
    data = load_retrieval_set(colours, "test")
    space = Space(depth=1, ffn_dims=(8, 16), embed_dims=(5,))
    perfect = np.eye(5, dtype=np.float32)[data.classes]
    blind = np.ones((len(data), 5), dtype=np.float32)
    embedded = EmbeddedImages(data=data, by_submodel={space.smallest: blind, space.full: perfect}, num_broken=0)
    score = {
        (r.query_submodel, r.index_submodel): r.recall_at_1 for r in image_rows(embedded, space) if r.domain == "all"
    }
    assert score[space.full, space.full] == 1.0
    # Blind queries see five equal scores everywhere; a perfect query in a blind index sees all items equal too.
    assert score[space.smallest, space.full] == pytest.approx(3 / 15, abs=0.1)
    assert score[space.full, space.smallest] == pytest.approx(3 / 15, abs=0.1)
