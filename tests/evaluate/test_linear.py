import numpy as np
import pytest

from elastic.evaluate.linear import Rows, fit_linear, linear_probe


def clouds(num_rows: int, seed: int, spread: float = 0.3):
    """Three clouds around corners of a triangle, of very different scale in both features."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(3, size=num_rows)
    centres = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    features = centres[classes] + spread * rng.normal(size=(num_rows, 2))
    return Rows((features * [1000.0, 0.01] + [5.0, -3.0]).astype(np.float32), np.array([4, 2, 9])[classes])


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("weight_decay", [1e-3, 1e-1])
def test_the_gradient_of_the_penalised_loss_vanishes_at_what_was_fitted(weight_decay):
    train = clouds(200, 0)
    features, classes = train.features, train.classes
    fitted = fit_linear(train, weight_decay)
    scale = features.astype(np.float64).std(axis=0)
    excess = softmax(features @ fitted.weight.T + fitted.bias) - (classes[:, None] == fitted.classes)
    standardised = (features - features.astype(np.float64).mean(axis=0)) / scale
    of_weight = excess.T @ standardised / len(classes) + weight_decay * fitted.weight * scale
    np.testing.assert_allclose(of_weight, 0, atol=1e-5)
    np.testing.assert_allclose(excess.mean(axis=0), 0, atol=1e-5)


def test_without_features_the_logits_are_the_log_shares_of_the_classes():
    classes = np.array([0] * 6 + [1] * 3 + [2])
    fitted = fit_linear(Rows(np.ones((10, 2), np.float32), classes), 1e-3)
    np.testing.assert_allclose(softmax(fitted.bias[None])[0], [0.6, 0.3, 0.1], atol=1e-5)
    np.testing.assert_allclose(fitted.weight, 0, atol=1e-12)


def test_the_scale_of_the_features_does_not_matter():
    train, test = clouds(200, 0), clouds(300, 1)
    factor = np.float32([1e-3, 1e4])
    plain, scaled = (
        fit_linear(Rows(train.features * by, train.classes), 1e-2).top1(Rows(test.features * by, test.classes))
        for by in (np.float32([1, 1]), factor)
    )
    assert plain == scaled


def test_separate_clouds_are_told_apart_by_their_own_numbers():
    score = linear_probe(clouds(200, 0, 0.1), clouds(100, 1, 0.1), clouds(300, 2, 0.1))
    assert score.top1 > 0.99
    assert score.num_rows == 300


def test_the_weight_decay_is_the_one_that_validation_rows_like_best():
    rng = np.random.default_rng(0)
    # Few rows, many features, one of which tells the class: without a penalty the rest are learned by heart.
    sets = []
    for count in (40, 200, 2000):
        classes = rng.integers(2, size=count)
        features = rng.normal(size=(count, 60))
        features[:, 0] += 3 * classes
        sets.append(Rows(features, classes))
    train, val, test = sets
    grid = (1e-5, 1e-1, 1e3)
    of_val = {weight_decay: fit_linear(train, weight_decay).top1(val) for weight_decay in grid}
    score = linear_probe(train, val, test, grid)
    assert of_val[score.weight_decay] == max(of_val.values()) == score.val_top1
    assert score.top1 == fit_linear(train, score.weight_decay).top1(test)
    assert max(of_val.values()) > min(of_val.values())


def test_of_equal_weight_decays_the_largest_is_taken():
    near = clouds(100, 0, 0.01)
    assert linear_probe(near, near, near, (1e-3, 1e-5, 1e-4)).weight_decay == 1e-3


def test_classes_that_training_lacked_are_wrong():
    rows = clouds(100, 0, 0.01)
    fitted = fit_linear(rows, 1e-3)
    renamed = Rows(rows.features, np.where(rows.classes == 9, 5, rows.classes))
    assert fitted.top1(renamed) == pytest.approx((rows.classes != 9).mean())
