"""What the numbers of `elastic probe` are to be compared with: the score of a guess, or of the best constant answer.

Chance is the expectation when every answer is equally likely. For pixels a guess is a poor rival: there it is the
class that is commonest in the training rows, at every pixel, and the mean distance of the training rows.
"""

import numpy as np
from jaxtyping import Int, Integer

from elastic.data.dense import DenseSet
from elastic.evaluate.dense import judge_segments
from elastic.evaluate.metrics import NO_CLASS
from elastic.evaluate.probe_result import Scale
from elastic.evaluate.probe_set import Named, Part
from elastic.evaluate.text_retrieval import CaptionPairs


def of_names(named: Named) -> Scale:
    """Of zero-shot: one of the names."""
    return Scale(floor=1 / len(named.names), num_tested=len(named.images), num_choices=len(named.names))


def of_captions(pairs: CaptionPairs) -> tuple[Scale, Scale]:
    """Of image to caption, and of caption to image: some of the answers are right."""
    return _of_search(pairs.of_image, len(pairs.captions)), _of_search(pairs.of_caption, len(pairs.of_image))


def of_classes(train: Part, tested: Part) -> Scale:
    """Of neighbours and the linear probe: one of the training rows' classes, which may lack that of a tested row."""
    known = np.unique(train.classes[train.labelled])
    wanted = tested.classes[tested.labelled]
    floor = float(np.isin(wanted, known).mean() / len(known))
    return Scale(floor=floor, num_tested=len(wanted), num_choices=len(known))


def of_segments(train: DenseSet, tested: DenseSet) -> tuple[Scale, Scale]:
    """Of mIoU and of pixel accuracy: the class of most training pixels everywhere."""
    count = len(train.segment_names)
    always = np.bincount(train.segments.ravel(), minlength=count).argmax()
    confusion = np.zeros((count, count), np.int64)
    confusion[:, always] = np.bincount(tested.segments.ravel(), minlength=count)
    score = judge_segments(confusion, train.segment_names)
    size, classes = tested.segments.size, len(score.iou)
    return (
        Scale(floor=score.mean_iou, num_tested=size, num_choices=classes),
        Scale(floor=score.pixel_accuracy, num_tested=size, num_choices=classes),
    )


def of_depth(
    train_mm: Integer[np.ndarray, "train size size"], tested_mm: Integer[np.ndarray, "test size size"]
) -> Scale:
    """Of the RMSE in metres: the mean of all known training pixels everywhere; 0 is unknown."""
    known = tested_mm[tested_mm > 0]
    mean_mm = train_mm[train_mm > 0].mean(dtype=np.float64)
    rmse_m = float(np.sqrt(np.square(known - mean_mm).mean()) / 1000)
    return Scale(floor=rmse_m, num_tested=known.size)


def _of_search(answers: Int[np.ndarray, "query answers"], num_items: int) -> Scale:
    right = (answers != NO_CLASS).sum(axis=1)
    asking = right > 0
    return Scale(floor=float(right[asking].mean() / num_items), num_tested=int(asking.sum()), num_choices=num_items)
