"""What flows between data, model and objectives keeps its shapes."""

import pytest
import torch
from jaxtyping import TypeCheckError

from elastic.batch import Batch, Captions, Features


def make_batch(**changes: torch.Tensor) -> Batch:
    fields = {
        "images": torch.zeros(4, 3, 8, 8),
        "row_ids": torch.arange(4),
        "domains": torch.zeros(4, dtype=torch.int64),
    }
    return Batch(**(fields | changes))


def make_features(**changes: torch.Tensor) -> Features:
    fields = {
        "embedding": torch.arange(12.0).reshape(2, 6),
        "cls_token": torch.zeros(2, 5),
        "patch_tokens": torch.zeros(2, 3, 5),
    }
    return Features(**(fields | changes))


def test_a_wrong_rank_is_refused_when_the_batch_is_made():
    with pytest.raises(TypeCheckError):
        make_batch(images=torch.zeros(4, 8, 8))


def test_two_fields_that_disagree_on_the_batch_size_are_refused():
    with pytest.raises(TypeCheckError):
        make_batch(labels=torch.zeros(3, dtype=torch.int64))


def test_token_ids_must_be_integers():
    with pytest.raises(TypeCheckError):
        Captions(tokens=torch.zeros(2, 7), mask=torch.ones(2, 7, dtype=torch.bool), index=torch.arange(2))


def test_present_names_exactly_the_fields_that_hold_a_tensor():
    batch = make_batch(labels=torch.zeros(4, dtype=torch.int64))
    assert batch.present == {"images", "row_ids", "domains", "labels"}


def test_to_moves_every_tensor_and_leaves_absent_fields_absent():
    captions = Captions(
        tokens=torch.ones(1, 2, dtype=torch.int64),
        mask=torch.ones(1, 2, dtype=torch.bool),
        index=torch.zeros(4, dtype=torch.int64),
    )
    batch = make_batch(labels=torch.zeros(4, dtype=torch.int64), captions=captions).to("meta")
    assert batch.images.device.type == batch.row_ids.device.type == batch.domains.device.type == "meta"
    assert batch.labels is not None and batch.labels.device.type == "meta"
    assert batch.captions is not None and batch.captions.tokens.device.type == "meta"
    assert batch.synthetic_captions is None and batch.caption_ids is None


def test_truncate_cuts_both_embeddings_to_the_same_leading_coordinates():
    features = make_features(text_embedding=torch.arange(18.0).reshape(3, 6))
    cut = features.truncate(2)
    assert cut.embedding.tolist() == [[0.0, 1.0], [6.0, 7.0]]
    assert cut.text_embedding is not None
    assert cut.text_embedding.tolist() == [[0.0, 1.0], [6.0, 7.0], [12.0, 13.0]]


def test_truncate_leaves_tokens_and_a_missing_text_embedding_alone():
    features = make_features()
    cut = features.truncate(3)
    assert cut.text_embedding is None
    assert cut.cls_token is features.cls_token and cut.patch_tokens is features.patch_tokens


def test_text_and_image_embeddings_must_have_one_width():
    with pytest.raises(TypeCheckError):
        make_features(text_embedding=torch.zeros(3, 4))
