import numpy as np
import pytest
import torch

from elastic.data.decode import decode
from elastic.errors import DataError
from elastic.evaluate.dataset import load_retrieval_set
from elastic.evaluate.embed import embed_captions, embed_images, truncate
from elastic.model.preprocess import CANVAS_SCALE, to_model_input

from .conftest import PREPROCESS, rows, write_set


def test_bulk_embeddings_equal_those_of_single_images_for_every_submodel(colours, encoder):
    submodels = list(encoder.space.mixes())
    found = embed_images(encoder, load_retrieval_set(colours, "test"), PREPROCESS, submodels, batch_size=4)
    canvas = decode(rows()[6]["image"], CANVAS_SCALE * PREPROCESS.image_size)
    image = to_model_input(torch.from_numpy(canvas)[None], PREPROCESS)
    for submodel in submodels:
        with torch.inference_mode():
            alone = encoder.encode_images(image, submodel, encoder.space.full_embed_dim)[0].numpy()
        np.testing.assert_allclose(found.by_submodel[submodel][6], alone, atol=1e-6)


def test_broken_images_are_left_out_and_counted(tmp_path, encoder):
    records = rows()[:6]
    records[4]["image"] = b"not an image"
    data = load_retrieval_set(write_set(tmp_path / "set.parquet", records), "test")
    submodel = encoder.space.full
    found = embed_images(encoder, data, PREPROCESS, [submodel], max_bad_fraction=0.5)
    assert (found.num_broken, found.data.row_ids.tolist()) == (1, [0, 1, 2, 3, 5])
    assert len(found.by_submodel[submodel]) == 5
    with pytest.raises(DataError, match="1 of 6 images cannot be decoded"):
        embed_images(encoder, data, PREPROCESS, [submodel], max_bad_fraction=0.1)


def test_caption_embeddings_do_not_depend_on_the_batch(encoder, tokenizer):
    captions = ["a apple", "a lime", "a plum plum plum"]
    submodel = encoder.text_space.full
    together = embed_captions(encoder, tokenizer, captions, [submodel])[submodel]
    apart = embed_captions(encoder, tokenizer, captions, [submodel], batch_size=1)[submodel]
    np.testing.assert_allclose(together, apart, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_a_truncated_embedding_is_a_normalised_prefix():
    cut = truncate(np.array([[3.0, 4.0, 12.0], [0.0, 0.0, 1.0]]), 2)
    np.testing.assert_allclose(cut, [[0.6, 0.8], [0.0, 0.0]])


def test_truncation_equals_embedding_at_that_width(colours, encoder):
    data, submodel = load_retrieval_set(colours, "test"), encoder.space.smallest
    full = embed_images(encoder, data, PREPROCESS, [submodel]).by_submodel[submodel]
    canvases = torch.cat([canvases for canvases, _ in data.canvases(CANVAS_SCALE * PREPROCESS.image_size, 99)])
    with torch.inference_mode():
        narrow = encoder.encode_images(to_model_input(canvases, PREPROCESS), submodel, 4).numpy()
    np.testing.assert_allclose(truncate(full, 4), narrow, atol=1e-6)
