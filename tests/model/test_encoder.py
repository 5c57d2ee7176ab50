"""Two towers, one space: the same granularity of both, cut and normalised in that order."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from elastic.batch import Batch
from elastic.model.encoder import Encoder
from elastic.submodel import Submodel


def test_features_hold_both_embeddings_unnormalised(encoder: Encoder, batch: Batch):
    features = encoder(batch, encoder.space.full)
    assert features.embedding.shape == (4, 8)
    assert features.text_embedding is not None and features.text_embedding.shape == (2, 8)
    assert not torch.allclose(features.embedding.norm(dim=1), torch.ones(4))


def test_captions_run_at_the_granularity_of_the_images(encoder: Encoder, batch: Batch):
    assert encoder.text is not None and batch.captions is not None
    for name, submodel in encoder.space.granularities.items():
        assert encoder.text_space is not None
        expected = encoder.text(batch.captions.tokens, batch.captions.mask, encoder.text_space.granularities[name])
        assert torch.equal(encoder(batch, submodel).text_embedding, expected)


def test_a_mixed_submodel_maps_to_the_same_relative_depth(encoder: Encoder, batch: Batch):
    assert encoder.text is not None and batch.captions is not None
    mixed = Submodel((12, 24, 96))  # S, M, XL over three layers: the text tower's two take the first and second
    expected = encoder.text(batch.captions.tokens, batch.captions.mask, Submodel((8, 16)))
    assert torch.equal(encoder(batch, mixed).text_embedding, expected)


def test_a_batch_without_captions_has_no_text_embedding(encoder: Encoder, batch: Batch):
    bare = replace(batch, captions=None)
    features = encoder(bare, encoder.space.full)
    assert features.text_embedding is None
    assert torch.equal(features.embedding, encoder(batch, encoder.space.full).embedding)


def test_embeddings_are_cut_before_they_are_normalised(encoder: Encoder, batch: Batch):
    embedding = encoder(batch, encoder.space.full).embedding
    found = encoder.encode_images(batch.images, encoder.space.full, 4)
    torch.testing.assert_close(found, F.normalize(embedding[:, :4], dim=1))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))


def test_texts_are_encoded_at_a_text_submodel(encoder: Encoder, batch: Batch):
    assert batch.captions is not None and encoder.text_space is not None
    found = encoder.encode_texts(batch.captions.tokens, batch.captions.mask, encoder.text_space.smallest, 4)
    expected = encoder(batch, encoder.space.smallest).text_embedding[:, :4]
    torch.testing.assert_close(found, F.normalize(expected, dim=1))


def test_low_precision_embeddings_are_normalised_in_float32(encoder: Encoder, batch: Batch):
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder.encode_images(batch.images, encoder.space.full, 8)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))


def test_an_image_encoder_refuses_texts(encoder: Encoder, batch: Batch):
    encoder.text = None
    with pytest.raises(AssertionError, match="no text tower"):
        encoder.encode_texts(batch.captions.tokens, batch.captions.mask, encoder.space.full, 8)
