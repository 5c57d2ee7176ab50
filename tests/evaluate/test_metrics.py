"""The golden examples of UnED's metric, worked by hand, and a loop re-derivation."""

import numpy as np
import pytest

from elastic.evaluate.metrics import NO_CLASS, NO_EXCLUSION, class_numbers, judge, nearest, pad_classes

ANGLES = [0, 5, 12, 20, 31, 8, 14, 50, 90]
DOMAINS = list("AAAAABBBA")
LABELS = list("777887799")
A = np.flatnonzero(np.array(DOMAINS) == "A")


def vectors(degrees):
    radians = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


INDEX = vectors(ANGLES)
CLASSES = class_numbers(DOMAINS, LABELS)


def test_merged_index_queries_of_domain_a_match_the_worked_example():
    judged = judge(INDEX[A], CLASSES[A][:, None], INDEX, CLASSES, exclude=A)
    assert judged.num_relevant.tolist() == [2, 2, 2, 1, 1, 0]
    assert judged.modified_precision.tolist() == [0.5, 0.5, 0.0, 0.0, 1.0, 0.0]
    assert judged.first_is_relevant.tolist() == [True, False, False, False, True, False]
    assert judged.mmp_at_5 == pytest.approx(1 / 3)
    assert judged.recall_at_1 == pytest.approx(1 / 3)


def test_merged_order_of_domain_a_matches_the_worked_example():
    order = nearest(INDEX[A], INDEX, 4, A)
    assert order[0].tolist() == [1, 5, 2, 6]
    assert order[2].tolist() == [6, 5, 1, 3]
    assert [row[:3].tolist() for row in order[[1, 3, 4]]] == [[5, 0, 2], [6, 2, 4], [3, 6, 2]]
    assert order[5, :2].tolist() == [7, 4]


def test_separate_index_of_domain_a_matches_the_worked_example():
    judged = judge(INDEX[A], CLASSES[A][:, None], INDEX[A], CLASSES[A], exclude=np.arange(len(A)))
    assert judged.modified_precision.tolist() == [1.0, 1.0, 0.5, 0.0, 1.0, 0.0]
    assert judged.first_is_relevant.tolist() == [True, True, True, False, True, False]
    assert judged.mmp_at_5 == pytest.approx(0.583333, abs=1e-6)
    assert judged.recall_at_1 == pytest.approx(0.666667, abs=1e-6)


def test_external_queries_of_domain_b_match_the_worked_example():
    classes = np.array([[CLASSES[5]], [CLASSES[7]]])
    # 10 degrees is midway between positions 2 and 5, a tie that goes to position 2; cosines in floating point
    # break it either way, so the query leans towards position 2 by a hundred-millionth of a degree.
    judged = judge(vectors([10 + 1e-8, 60]), classes, INDEX, CLASSES)
    assert judged.num_relevant.tolist() == [2, 1]
    assert judged.modified_precision.tolist() == [0.5, 1.0]
    assert judged.first_is_relevant.tolist() == [False, True]
    assert (judged.mmp_at_5, judged.recall_at_1) == (0.75, 0.5)


def test_a_query_is_excluded_by_its_position_even_among_exact_duplicates():
    index = np.array([[1.0, 0.0], [1.0, 0.0], [0.8, 0.6]])
    classes = np.array([0, 1, 1])
    assert nearest(index[[1]], index, 2, np.array([1])).tolist() == [[0, 2]]
    judged = judge(index[[1]], classes[[1]][:, None], index, classes, exclude=np.array([1]))
    assert (judged.recall_at_1, judged.mmp_at_5, judged.num_relevant.tolist()) == (0.0, 0.0, [1])


def test_a_query_with_several_labels_accepts_each_of_them():
    judged = judge(vectors([0]), pad_classes([[3, 7]]), vectors([1, 2, 3]), np.array([7, 3, 5]))
    assert (judged.num_relevant.tolist(), judged.mmp_at_5, judged.recall_at_1) == ([2], 1.0, 1.0)


def test_padding_matches_no_item_and_a_label_absent_from_the_index_scores_zero():
    judged = judge(vectors([0, 0]), pad_classes([[9], [0, 1]]), vectors([1, 2]), np.array([0, 1]))
    assert judged.num_relevant.tolist() == [0, 2]
    assert judged.modified_precision.tolist() == [0.0, 1.0]
    assert pad_classes([[9], [0, 1]])[0, 1] == NO_CLASS


def test_equal_scores_are_ordered_by_position():
    index = np.ones((50, 1))
    assert nearest(np.ones((1, 1)), index, 5).tolist() == [[0, 1, 2, 3, 4]]
    assert nearest(np.ones((1, 1)), index, 5, np.array([2])).tolist() == [[0, 1, 3, 4, 5]]


def test_an_index_smaller_than_the_depth_ends_with_minus_one():
    assert nearest(vectors([0]), vectors([3, 1, 2]), 5, np.array([1])).tolist() == [[2, 0, -1, -1, -1]]


def test_metrics_equal_a_plain_loop_over_queries():
    rng = np.random.default_rng(0)
    index = rng.integers(-2, 3, size=(60, 3)).astype(np.float64)  # integers: many exact ties
    classes = rng.integers(0, 12, size=60)
    queries = np.concatenate([index[:20], rng.integers(-2, 3, size=(20, 3))]).astype(np.float64)
    labels = pad_classes([[int(c)] for c in classes[:20]] + [[1, 5, 11], [99]] * 10)
    exclude = np.array([*range(20), *[NO_EXCLUSION] * 20])
    judged = judge(queries, labels, index, classes, exclude=exclude)
    for q in range(40):
        items = [j for j in range(60) if j != exclude[q]]
        ranked = sorted(items, key=lambda j: (-(queries[q] @ index[j]), j))
        accepted = set(labels[q].tolist())
        relevant = [classes[j] in accepted for j in ranked]
        depth = min(5, sum(relevant))
        assert judged.num_relevant[q] == sum(relevant)
        assert judged.first_is_relevant[q] == relevant[0]
        assert judged.modified_precision[q] == pytest.approx(sum(relevant[:depth]) / depth if depth else 0.0)


def test_classes_differ_by_domain_even_when_labels_are_equal():
    assert class_numbers(["b", "a", "a"], ["x", "x", "x"]).tolist() == [1, 0, 0]
