import numpy as np
import pytest
import torch

from elastic.errors import DataError
from elastic.evaluate.features import image_embeddings, text_embeddings
from elastic.evaluate.metrics import NO_CLASS
from elastic.evaluate.text_retrieval import caption_retrieval, pair_captions

CAPTIONS = (("a plum", "a lime"), ("a lime",), (), ("a stop", "a stop"), ("a apple",), ("a info",))


def test_equal_captions_are_one_and_belong_to_every_image_that_carries_them():
    pairs = pair_captions(CAPTIONS)
    assert pairs.captions == ("a apple", "a info", "a lime", "a plum", "a stop")
    no = NO_CLASS
    assert pairs.of_image.tolist() == [[2, 3], [2, no], [no, no], [4, no], [0, no], [1, no]]
    assert pairs.of_caption.tolist() == [[4, no], [5, no], [0, 1], [0, no], [3, no]]


def test_images_without_any_caption_cannot_be_searched_by_text():
    with pytest.raises(DataError, match="none of 2 images"):
        pair_captions([(), ()])


def test_recall_equals_a_loop_in_both_directions_at_every_submodel_and_width(encoder, tokenizer):
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    submodels = [encoder.space.smallest, encoder.space.full]
    scores = caption_retrieval(encoder, tokenizer, image_embeddings(encoder, images, submodels), CAPTIONS)
    assert [(s.submodel, s.embed_dim) for s in scores] == [(s, width) for s in submodels for width in (4, 8)]
    texts = sorted({text for own in CAPTIONS for text in own})
    tokens, mask = tokenizer.encode(texts, 6)
    for score in scores:
        reader = encoder.space.translate(score.submodel, encoder.text_space)
        with torch.no_grad():
            seen = encoder.encode_images(images, score.submodel, score.embed_dim)
            cosines = (seen @ encoder.encode_texts(tokens, mask, reader, score.embed_dim).T).numpy()
        asking = [image for image, own in enumerate(CAPTIONS) if own]
        found = [texts[cosines[image].argmax()] in CAPTIONS[image] for image in asking]
        assert score.image_to_text == pytest.approx(np.mean(found))
        found = [text in CAPTIONS[cosines[:, column].argmax()] for column, text in enumerate(texts)]
        assert score.text_to_image == pytest.approx(np.mean(found))
        assert (score.num_images, score.num_captions) == (5, 5)


def test_images_at_their_captions_are_found_and_find_them(encoder, tokenizer):
    captions = [("a plum",), ("a lime",), ("a stop",)]
    submodel = encoder.space.full
    own = text_embeddings(encoder, tokenizer, [text for (text,) in captions], [submodel])
    for score in caption_retrieval(encoder, tokenizer, own, captions):
        assert (score.image_to_text, score.text_to_image) == (1.0, 1.0)
    for score in caption_retrieval(encoder, tokenizer, {submodel: np.roll(own[submodel], 1, axis=0)}, captions):
        assert (score.image_to_text, score.text_to_image) == (0.0, 0.0)
