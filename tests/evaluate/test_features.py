import numpy as np
import pytest
import torch
import torch.nn.functional as F

from elastic.data.tokenizer import train_tokenizer
from elastic.errors import ConfigError, DataError
from elastic.evaluate.dataset import load_retrieval_set
from elastic.evaluate.embed import embed_images
from elastic.evaluate.features import global_features, image_embeddings, patch_features, read_images, text_embeddings
from elastic.model.config import EncoderConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.vit import embed_second, forward_vit

from .conftest import PREPROCESS, rows, write_set


@pytest.fixture
def images():
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def with_second_token():
    torch.manual_seed(0)
    vision = VisionConfig(image_size=8, patch_size=4, width=16, depth=2, num_heads=2, pool="token", num_cls_tokens=2)
    return Encoder(EncoderConfig(vision=vision, embed_dims=(4, 8))).eval()


def test_a_patch_is_its_token_followed_by_the_pooled_one(encoder, images):
    submodel = encoder.space.smallest
    found = patch_features(encoder, images, submodel, batch_size=2)
    expected = forward_vit(encoder.image, images, submodel)
    assert found.shape == (5, 4, 32)
    torch.testing.assert_close(found[..., :16], expected.patch_tokens)
    for patch in range(4):
        torch.testing.assert_close(found[:, patch, 16:], expected.cls_token)
    assert not found.requires_grad


def test_submodels_see_images_differently(encoder, images):
    small, full = (global_features(encoder, images, s) for s in (encoder.space.smallest, encoder.space.full))
    assert np.abs(small - full).max() > 1e-3


def test_the_second_class_token_is_used_where_asked_for(with_second_token, images):
    submodel = with_second_token.space.full
    expected = forward_vit(with_second_token.image, images, submodel)
    for token in ("cls_token", "second_cls_token"):
        wanted = getattr(expected, token).detach().numpy()
        np.testing.assert_allclose(global_features(with_second_token, images, submodel, token=token), wanted, atol=1e-6)
        patches = patch_features(with_second_token, images, submodel, token=token)
        np.testing.assert_allclose(patches[:, 3, 16:], wanted, atol=1e-6)
    assert np.abs(wanted - expected.cls_token.detach().numpy()).max() > 1e-3


def test_an_encoder_without_a_second_class_token_says_so(encoder, images):
    submodel = encoder.space.full
    with pytest.raises(ConfigError, match="one class token"):
        global_features(encoder, images, submodel, token="second_cls_token")
    with pytest.raises(ConfigError, match="one class token"):
        image_embeddings(encoder, images, [submodel], token="second_cls_token")


def test_embeddings_are_those_that_retrieval_is_measured_with(colours, encoder):
    data = load_retrieval_set(colours, "test")
    submodels = [encoder.space.smallest, encoder.space.full]
    found = image_embeddings(encoder, read_images(data.source, data.row_ids, PREPROCESS, batch_size=4), submodels)
    expected = embed_images(encoder, data, PREPROCESS, submodels).by_submodel
    assert list(found) == submodels
    for submodel in submodels:
        np.testing.assert_allclose(found[submodel], expected[submodel], atol=1e-6)


def test_embeddings_of_the_second_class_token_are_that_token_through_the_same_head(with_second_token, images):
    submodel = with_second_token.space.smallest
    vit, tokens = with_second_token.image, with_second_token.see(images, submodel)
    by_hand = F.normalize(vit.head(tokens.second_cls_token), dim=1).detach().numpy()
    found = {
        token: image_embeddings(with_second_token, images, [submodel], token=token, batch_size=2)[submodel]
        for token in ("cls_token", "second_cls_token")
    }
    np.testing.assert_allclose(found["second_cls_token"], by_hand, atol=1e-6)
    trained = embed_second(vit, tokens).second_embedding.detach()
    np.testing.assert_allclose(found["second_cls_token"], F.normalize(trained, dim=1).numpy(), atol=1e-6)
    assert np.abs(found["second_cls_token"] - found["cls_token"]).max() > 1e-3


def test_a_broken_image_is_refused_by_its_row(tmp_path):
    records = rows()[:6]
    records[4]["image"] = b"not an image"
    data = load_retrieval_set(write_set(tmp_path / "set.parquet", records), "test")
    with pytest.raises(DataError, match=r"rows \[4\] cannot be decoded"):
        read_images(data.source, data.row_ids, PREPROCESS)


def test_texts_are_read_at_the_granularity_of_the_image_submodel(encoder, tokenizer):
    texts = ["a lime", "a plum"]
    found = text_embeddings(encoder, tokenizer, texts, list(encoder.space.mixes()))
    assert list(found) == list(encoder.space.mixes())
    tokens, mask = tokenizer.encode(texts, 6)
    for image, text in zip(
        encoder.space.granularities.values(), encoder.text_space.granularities.values(), strict=True
    ):
        with torch.no_grad():
            expected = encoder.encode_texts(tokens, mask, text, 8).numpy()
        np.testing.assert_allclose(found[image], expected, atol=1e-6)


def test_texts_need_a_text_tower(with_second_token):
    with pytest.raises(ConfigError, match="text tower"):
        text_embeddings(with_second_token, train_tokenizer(["a"], 8), ["a"], [with_second_token.space.full])
