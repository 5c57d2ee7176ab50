import numpy as np
import pytest
import torch

from elastic.data.decode import decode
from elastic.model.config import Preprocess
from elastic.model.preprocess import normalise, to_model_input

from ..data.drawing import encode

PREPROCESS = Preprocess(image_size=8, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))


def canvas(pixels: np.ndarray, size: int) -> torch.Tensor:
    return torch.from_numpy(decode(encode(pixels), size))[None]


def test_transparent_pixels_show_the_background():
    clear = torch.zeros(1, 4, 8, 8, dtype=torch.uint8)
    found = to_model_input(clear, Preprocess(image_size=8, background=(255, 0, 51)))
    for channel, value in enumerate((1.0, -1.0, -0.6)):
        assert found[0, channel].unique().item() == pytest.approx(value, abs=1e-6)


def test_half_transparent_pixels_are_mixed_with_the_background():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., 1], pixels[..., 3] = 255, 51
    found = to_model_input(canvas(pixels, 8), Preprocess(image_size=8, mean=(0, 0, 0), std=(1, 1, 1)))
    assert found[0, 0, 0, 0].item() == pytest.approx(0.8, abs=1e-6)
    assert found[0, 1, 0, 0].item() == pytest.approx(1.0, abs=1e-6)


def test_shrinking_by_a_whole_factor_is_the_mean():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    found = to_model_input(canvas(pixels, 32), PREPROCESS)
    mean = pixels.reshape(8, 4, 8, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
    expected = (mean - np.array([0.5, 0.4, 0.3])[:, None, None]) / np.array([0.5, 0.25, 0.2])[:, None, None]
    assert np.abs(found[0].numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("side", [7, 8, 13, 20])
def test_any_canvas_becomes_the_size_of_the_model(side: int):
    plain = torch.full((2, 4, side, side), 255, dtype=torch.uint8)
    found = to_model_input(plain, PREPROCESS)
    assert found.shape == (2, 3, 8, 8)
    assert (
        found - (1 - torch.tensor(PREPROCESS.mean)).div(torch.tensor(PREPROCESS.std)).view(3, 1, 1)
    ).abs().max() < 1e-5


def test_training_and_evaluation_normalise_alike():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    trained = normalise(pixels.transpose(2, 0, 1)[None].copy(), PREPROCESS)
    evaluated = to_model_input(canvas(pixels, 8), PREPROCESS).numpy()
    assert np.abs(trained - evaluated).max() < 1e-6
