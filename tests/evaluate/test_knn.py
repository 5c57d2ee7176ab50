import math

import numpy as np
import pytest

from elastic.evaluate.knn import TEMPERATURE, VOTERS, classify, knn


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def by_loop(index, index_classes, query, k):
    found = []
    for one in query:
        ranked = sorted(range(len(index)), key=lambda item: (-cosine(one, index[item]), item))
        votes = {}
        for item in ranked[:k]:
            number = int(index_classes[item])
            votes[number] = votes.get(number, 0.0) + math.exp(cosine(one, index[item]) / TEMPERATURE)
        found.append(min(votes, key=lambda number: (-votes[number], number)))
    return found


@pytest.mark.parametrize("k", [1, 5, 20, 200])
def test_votes_equal_a_plain_loop_over_queries(k):
    rng = np.random.default_rng(0)
    index, query = rng.normal(size=(120, 6)), rng.normal(size=(40, 6))
    classes = rng.integers(3, 9, size=120)
    assert classify(index, classes, query, k).tolist() == by_loop(index, classes, query, k)


def test_scores_are_the_shares_of_right_votes():
    rng = np.random.default_rng(1)
    index, query = rng.normal(size=(60, 4)), rng.normal(size=(30, 4))
    classes, wanted = rng.integers(3, size=60), rng.integers(3, size=30)
    score = knn(index, classes, query, wanted)
    assert score.top1_of_1 == pytest.approx(np.mean(by_loop(index, classes, query, 1) == wanted))
    assert score.top1_of_20 == pytest.approx(np.mean(by_loop(index, classes, query, VOTERS) == wanted))
    assert score.num_queries == 30


def test_length_says_nothing_about_class():
    rng = np.random.default_rng(2)
    index, query, classes = rng.normal(size=(50, 5)), rng.normal(size=(20, 5)), rng.integers(4, size=50)
    scaled = index * rng.uniform(0.1, 10, size=(50, 1))
    assert (classify(scaled, classes, 3 * query, 20) == classify(index, classes, query, 20)).all()


def test_many_distant_neighbours_do_not_outvote_one_that_is_near():
    # One item at the query, nineteen at right angles to it: weights exp(1 / 0.07) to 19 exp(0).
    index = np.array([[1.0, 0.0]] + [[0.0, 1.0]] * 19)
    classes = np.array([7] + [3] * 19)
    query = np.array([[1.0, 0.0]])
    assert classify(index, classes, query, 20).tolist() == [7]
    assert classify(index, classes, query, 20, temperature=1.0).tolist() == [3]


def test_a_class_that_the_index_lacks_is_never_right():
    points = np.eye(4)
    score = knn(points, np.arange(4), points, np.array([0, 1, 2, 9]))
    assert (score.top1_of_1, score.top1_of_20) == (0.75, 0.75)
