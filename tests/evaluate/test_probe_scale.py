import numpy as np
import pytest

from elastic.data.dense import DenseSet
from elastic.data.sources import open_source
from elastic.evaluate.metrics import NO_CLASS
from elastic.evaluate.probe_scale import of_captions, of_classes, of_depth, of_names, of_segments
from elastic.evaluate.probe_set import Named, Part
from elastic.evaluate.text_retrieval import pair_captions


def part(classes):
    nothing = ((),) * len(classes)
    return Part(
        row_ids=np.arange(len(classes)),
        classes=np.array(classes),
        labels=(None,) * len(classes),
        captions=nothing,
        synthetic_captions=nothing,
    )


def test_a_guess_among_names_is_right_once_in_as_many():
    named = Named(images=np.arange(6), classes=np.zeros(6, np.int64), names=("a", "b", "c", "d"))
    scale = of_names(named)
    assert (scale.floor, scale.num_tested, scale.num_choices) == (1 / 4, 6, 4)


def test_a_guess_among_captions_is_right_as_often_as_a_loop_over_all_pairs():
    captions = [("a", "b"), ("b",), (), ("c",), ("b", "d", "e")]
    distinct = sorted({text for texts in captions for text in texts})
    asking = [texts for texts in captions if texts]
    to_text, to_image = of_captions(pair_captions(captions))
    right = [[text in texts for text in distinct] for texts in asking]
    assert to_text.floor == pytest.approx(np.mean(right))
    assert (to_text.num_tested, to_text.num_choices) == (4, 5)
    right = [[text in texts for texts in captions] for text in distinct]
    assert to_image.floor == pytest.approx(np.mean(right))
    assert (to_image.num_tested, to_image.num_choices) == (5, 5)


def test_a_class_that_training_lacks_cannot_be_guessed():
    scale = of_classes(part([0, 1, 1, 2, NO_CLASS]), part([0, 2, 5, NO_CLASS]))
    assert scale.floor == pytest.approx(2 / 3 * 1 / 3)
    assert (scale.num_tested, scale.num_choices) == (3, 3)


def dense(segments, halves):
    return DenseSet(
        source=open_source(halves),
        split="train",
        row_ids=np.arange(len(segments)),
        segment_names=("ground", "disc", "star"),
        segments=np.array(segments, np.uint8),
        instances=None,
        depth_mm=None,
    )


def test_one_class_everywhere_is_the_one_that_most_training_pixels_have(halves):
    train = dense([[[1, 1], [1, 0]]], halves)
    tested = dense([[[1, 0], [0, 0]], [[1, 0], [0, 0]]], halves)
    mean_iou, accuracy = of_segments(train, tested)
    # Disc everywhere: 2 of 8 pixels are right; its IoU is 2 / 8, the ground's is 0, and no pixel is a star.
    assert mean_iou.floor == pytest.approx(1 / 8)
    assert accuracy.floor == pytest.approx(1 / 4)
    assert (accuracy.num_tested, mean_iou.num_choices) == (8, 2)


def test_one_distance_everywhere_is_the_mean_of_the_known_training_pixels():
    train = np.array([[[1000, 3000], [0, 0]]], np.uint16)
    tested = np.array([[[2000, 5000], [0, 2000]]], np.uint16)
    scale = of_depth(train, tested)
    assert scale.floor == pytest.approx((9 / 3) ** 0.5)
    assert (scale.num_tested, scale.num_choices) == (3, None)
