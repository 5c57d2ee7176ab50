import numpy as np
import pytest

from elastic.evaluate.dataset import caption_queries, load_retrieval_set
from elastic.evaluate.metrics import judge
from elastic.evaluate.uned import by_domain, image_retrieval, text_to_image

from .conftest import COLOURS
from .test_metrics import ANGLES, CLASSES, DOMAINS, A, vectors


def golden():
    """UnED's worked example: domain A queries itself, domain B has two external queries."""
    queries = np.concatenate([vectors(ANGLES)[A], vectors([10 + 1e-8, 60])])
    classes = np.array([*CLASSES[A], CLASSES[5], CLASSES[7]])[:, None]
    return judge(queries, classes, vectors(ANGLES), CLASSES, exclude=np.array([*A, -1, -1]))


def test_macro_and_micro_means_match_the_worked_example():
    scores = by_domain(golden(), ["A"] * 6 + ["B"] * 2)
    assert (scores["A"].mmp_at_5, scores["A"].recall_at_1) == pytest.approx((1 / 3, 1 / 3))
    assert (scores["B"].mmp_at_5, scores["B"].recall_at_1) == (0.75, 0.5)
    assert scores["mean"].mmp_at_5 == pytest.approx(0.541667, abs=1e-6)
    assert scores["mean"].recall_at_1 == pytest.approx(0.416667, abs=1e-6)
    assert scores["all"].mmp_at_5 == pytest.approx(0.4375)


def test_every_score_says_how_many_queries_it_is_of():
    scores = by_domain(golden(), ["A"] * 6 + ["B"] * 2)
    assert {name: score.num_queries for name, score in scores.items()} == {"A": 6, "B": 2, "mean": 8, "all": 8}


def test_a_merged_index_never_beats_one_index_per_domain():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(len(DOMAINS), 4))
    for domain in "AB":
        inside = np.flatnonzero(np.array(DOMAINS) == domain)
        merged = judge(points[inside], CLASSES[inside][:, None], points, CLASSES, exclude=inside)
        own = np.arange(len(inside))
        separate = judge(points[inside], CLASSES[inside][:, None], points[inside], CLASSES[inside], exclude=own)
        assert (merged.modified_precision <= separate.modified_precision).all()
        assert (merged.first_is_relevant <= separate.first_is_relevant).all()


def test_embeddings_that_are_their_class_retrieve_perfectly(colours):
    data = load_retrieval_set(colours, "test")
    perfect = np.eye(len(COLOURS))[data.classes]
    scores = image_retrieval(perfect, perfect, data)
    assert set(scores) == {"fruit", "sign", "mean", "all"}
    assert {(score.recall_at_1, score.mmp_at_5) for score in scores.values()} == {(1.0, 1.0)}
    captions = caption_queries(data)
    of_caption = np.eye(len(COLOURS))[captions.classes[:, 0]]
    assert text_to_image(of_caption, perfect, captions, data)["all"].mmp_at_5 == 1.0
    wrong = np.roll(of_caption, 1, axis=0)
    assert text_to_image(wrong, perfect, captions, data)["all"].recall_at_1 == 0.0
