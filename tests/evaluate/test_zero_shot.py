import numpy as np
import pytest
import torch

from elastic.errors import ConfigError
from elastic.evaluate.features import image_embeddings, text_embeddings
from elastic.evaluate.zero_shot import class_embeddings, prompts, zero_shot

NAMES = ("apple", "lime", "plum")
TEMPLATES = ("a {}", "{}")


def unit(vector):
    return vector / np.linalg.norm(vector)


def test_every_name_goes_into_every_template():
    assert prompts(("cat", "dog"), ("a {}", "{} {}")) == ["a cat", "cat cat", "a dog", "dog dog"]


@pytest.mark.parametrize("templates", [(), ("a {}", "no place")])
def test_templates_need_a_place_for_the_name(templates):
    with pytest.raises(ConfigError, match="where the name goes"):
        prompts(NAMES, templates)


def test_a_class_is_the_normalised_mean_of_its_cut_and_normalised_texts():
    texts = np.array([[3.0, 4.0, 9.0], [1.0, 0.0, 2.0], [0.0, 2.0, 0.0], [0.0, 5.0, 1.0]])
    found = class_embeddings(texts, 2, 2)
    np.testing.assert_allclose(found, [unit(np.array([0.6 + 1.0, 0.8])), [0.0, 1.0]])


def test_scores_equal_a_loop_over_images_at_every_submodel_and_width(encoder, tokenizer):
    images = torch.randn(30, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    classes = np.random.default_rng(0).integers(3, size=30)
    submodels = [encoder.space.smallest, encoder.space.full]
    scores = zero_shot(encoder, tokenizer, image_embeddings(encoder, images, submodels), classes, NAMES, TEMPLATES)
    assert [(s.submodel, s.embed_dim) for s in scores] == [(s, width) for s in submodels for width in (4, 8)]
    for score in scores:
        text_submodel = encoder.space.translate(score.submodel, encoder.text_space)
        right = 0
        with torch.no_grad():
            seen = encoder.encode_images(images, score.submodel, score.embed_dim).numpy()
            of_class = []
            for name in NAMES:
                tokens, mask = tokenizer.encode([f"a {name}", name], 6)
                read = encoder.encode_texts(tokens, mask, text_submodel, score.embed_dim).numpy()
                of_class.append(unit(read.mean(axis=0)))
        for image, wanted in zip(seen, classes, strict=True):
            right += int(np.argmax([image @ one for one in of_class]) == wanted)
        assert score.top1 == pytest.approx(right / 30)
        assert (score.num_classes, score.num_images) == (3, 30)


def test_images_that_lie_at_their_class_text_are_all_right(encoder, tokenizer):
    classes = np.array([2, 0, 1, 1])
    texts = text_embeddings(encoder, tokenizer, prompts(NAMES, ("{}",)), [encoder.space.full])
    at_text = {submodel: found[classes] for submodel, found in texts.items()}
    assert {s.top1 for s in zero_shot(encoder, tokenizer, at_text, classes, NAMES, ("{}",))} == {1.0}
    assert {s.top1 for s in zero_shot(encoder, tokenizer, at_text, (classes + 1) % 3, NAMES, ("{}",))} == {0.0}
