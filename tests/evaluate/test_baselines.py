import numpy as np
import pytest

from elastic.errors import ConfigError
from elastic.evaluate import baselines
from elastic.evaluate.baselines import chance, efficientnet_lite0, evaluate_baseline
from elastic.evaluate.dataset import load_retrieval_set
from elastic.evaluate.uned import image_retrieval


def test_raw_pixels_reach_the_known_score_on_the_bundled_icons():
    scores = evaluate_baseline("pixels", load_retrieval_set("icons", "test"))
    assert scores["all"].recall_at_1 == pytest.approx(0.411, abs=0.0005)


def test_plain_colours_are_found_by_their_pixels(colours):
    scores = evaluate_baseline("pixels", load_retrieval_set(colours, "test"))
    assert scores["all"].recall_at_1 == 1.0


def test_chance_is_the_share_of_the_index_that_is_relevant(colours):
    scores = chance(load_retrieval_set(colours, "test"))
    assert scores["all"].recall_at_1 == pytest.approx(2 / 14)
    assert scores["mean"].mmp_at_5 == pytest.approx(2 / 14)


def test_chance_is_what_random_embeddings_score_on_average(colours):
    data, rng = load_retrieval_set(colours, "test"), np.random.default_rng(0)
    found = []
    for _ in range(400):
        noise = rng.normal(size=(len(data), 8))
        found.append(image_retrieval(noise, noise, data)["all"])
    assert np.mean([score.recall_at_1 for score in found]) == pytest.approx(2 / 14, abs=0.02)
    assert np.mean([score.mmp_at_5 for score in found]) == pytest.approx(2 / 14, abs=0.02)


def test_the_imagenet_network_without_its_wheel_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(baselines, "LITE0_WHEEL", "no_such_wheel_is_installed")
    with pytest.raises(ConfigError, match=r"pip install elastic\[teachers\]"):
        efficientnet_lite0()


def test_the_imagenet_network_embeds_with_its_pooled_features(colours):
    pytest.importorskip(baselines.LITE0_WHEEL)
    data = load_retrieval_set(colours, "test")
    features = baselines.embed(data, 128, efficientnet_lite0())
    assert features.shape == (15, 1280)
    assert (features >= 0).all()  # after ReLU6 and mean
    assert evaluate_baseline("efficientnet_lite0", data)["all"].recall_at_1 > 2 / 14
