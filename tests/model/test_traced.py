import gc
import weakref

import pytest
import torch

from elastic.model.config import EncoderConfig, Preprocess, TextConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.preprocess import to_model_input
from elastic.model.traced import trace_images, trace_texts
from elastic.submodel import Submodel

TEXT = TextConfig(vocab_size=20, max_tokens=6, width=8, depth=2, num_heads=2, mlp_ratio=2.0)
VISION = VisionConfig(image_size=16, patch_size=8, width=8, depth=2, num_heads=2, mlp_ratio=2.0)
PREPROCESS = Preprocess(image_size=16, background=(255, 0, 51))


def canvases(count: int) -> torch.Tensor:
    return torch.randint(256, (count, 4, 32, 32), dtype=torch.uint8)


def called(encoder: Encoder, images: torch.Tensor, submodel: Submodel) -> torch.Tensor:
    """What a trace is a recording of."""
    return encoder.encode_images(to_model_input(images, PREPROCESS), submodel, 4)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(vision=VISION, text=TEXT, ffn_fractions=(0.25, 0.5, 1.0), embed_dims=(2, 4))
    return Encoder(config).eval().requires_grad_(False)


@torch.inference_mode()
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_trace_of_images_is_the_call(encoder: Encoder, batch_size: int) -> None:
    images = canvases(batch_size)
    for submodel in encoder.space.mixes():
        expected = called(encoder, images, submodel)
        torch.testing.assert_close(trace_images(encoder, PREPROCESS, submodel)(images), expected, rtol=0, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize(("batch_size", "length"), [(1, 6), (2, 6), (3, 1), (5, 4)])
def test_a_trace_of_texts_is_the_call_at_every_length(encoder: Encoder, batch_size: int, length: int) -> None:
    assert encoder.text_space is not None
    tokens = torch.randint(1, 20, (batch_size, length))
    mask = torch.arange(length) < torch.randint(1, length + 1, (batch_size, 1))
    for submodel in encoder.text_space.mixes():
        expected = encoder.encode_texts(tokens, mask, submodel, encoder.space.full_embed_dim)
        torch.testing.assert_close(trace_texts(encoder, submodel)(tokens, mask), expected, rtol=0, atol=1e-6)


@torch.inference_mode()
def test_in_bfloat16_it_is_the_call_under_autocast_wherever_it_is_made(encoder: Encoder) -> None:
    images = canvases(3)
    with torch.autocast("cpu", torch.bfloat16):
        expected = called(encoder, images, encoder.space.full)
    call = trace_images(encoder, PREPROCESS, encoder.space.full, "bfloat16")
    torch.testing.assert_close(call(images), expected, rtol=0, atol=1e-2)
    assert not torch.equal(call(images), called(encoder, images, encoder.space.full))


@torch.inference_mode()
def test_it_reads_the_memory_of_the_encoder() -> None:
    encoder = Encoder(EncoderConfig(vision=VISION, ffn_fractions=(0.5, 1.0), embed_dims=(4,))).eval()
    images, submodel = canvases(2), encoder.space.smallest
    call = trace_images(encoder, PREPROCESS, submodel)
    before = call(images)
    for parameter in encoder.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    assert not torch.allclose(call(images), before)
    torch.testing.assert_close(call(images), called(encoder, images, submodel), rtol=0, atol=1e-6)


def test_weights_leave_memory_with_the_trace() -> None:
    encoder = Encoder(EncoderConfig(vision=VISION, ffn_fractions=(0.5, 1.0), embed_dims=(4,))).eval()
    weight = weakref.ref(encoder.image.head.weight)
    call = trace_images(encoder, PREPROCESS, encoder.space.full)
    del encoder, call
    gc.collect()
    assert weight() is None


def test_an_encoder_in_training_is_not_traced(encoder: Encoder) -> None:
    encoder.train()
    try:
        with pytest.raises(AssertionError, match="eval mode"):
            trace_images(encoder, PREPROCESS, encoder.space.full)
    finally:
        encoder.eval()
