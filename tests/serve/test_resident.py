import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from elastic.checkpoint import load_model
from elastic.model.preprocess import to_model_input
from elastic.serve.resident import ResidentModel, weights_version


@pytest.fixture
def model(tiny_model: ResidentModel) -> ResidentModel:
    return tiny_model


@pytest.mark.parametrize("modality", ["image", "text"])
def test_a_batch_equals_its_inputs_one_by_one(model: ResidentModel, modality: str) -> None:
    submodel = model.spaces[modality].granularities["M"]  # type: ignore[index]
    one, other = model.example(modality), model.example(modality)  # type: ignore[arg-type]
    if modality == "image":
        other = other[:, ::-1]  # type: ignore[index]
    together = model.compute(modality, submodel, [one, other])  # type: ignore[arg-type]
    apart = np.concatenate([model.compute(modality, submodel, [item]) for item in (one, other)])  # type: ignore[arg-type]
    assert together == pytest.approx(apart, abs=1e-5)
    assert np.linalg.norm(together, axis=1) == pytest.approx([1.0, 1.0])


def test_images_are_embedded_as_in_evaluation(model: ResidentModel) -> None:
    canvas = np.random.default_rng(0).integers(0, 256, model.example("image").shape, dtype=np.uint8)  # type: ignore[attr-defined]
    canvas[:3] = np.minimum(canvas[:3], canvas[3])  # colour is multiplied by alpha
    submodel, encoder = model.spaces["image"].full, model.encoder
    images = to_model_input(torch.from_numpy(canvas)[None], model.manifest.preprocess)
    expected = encoder.encode_images(images, submodel, encoder.space.full_embed_dim)
    assert model.compute("image", submodel, [canvas]) == pytest.approx(expected.numpy(), abs=1e-6)


def test_texts_of_different_lengths_share_a_batch(model: ResidentModel) -> None:
    submodel = model.spaces["text"].smallest
    short = (torch.tensor([5]), torch.tensor([True]))
    long = (torch.tensor([5, 6, 7]), torch.tensor([True, True, True]))
    together = model.compute("text", submodel, [short, long])
    assert together[0] == pytest.approx(model.compute("text", submodel, [short])[0], abs=1e-5)


def test_submodels_answer_differently_from_one_set_of_weights(model: ResidentModel) -> None:
    names = model.spaces["image"].granularities
    answers = [model.compute("image", submodel, [model.example("image")]) for submodel in names.values()]
    assert all(not np.allclose(one, other) for one, other in itertools.pairwise(answers))


def test_the_canary_notices_weights_that_changed_or_broke(tiny_run: Path) -> None:
    encoder, manifest, tokenizer = load_model(tiny_run)
    head = encoder.image.head
    # Memory of its own: the loaded weights are a map of the file.
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    model = ResidentModel(encoder.requires_grad_(False), manifest, tokenizer, version="")
    assert model.is_sane()
    assert model.is_sane()
    head.weight.copy_(head.weight.flip(0))
    assert not model.is_sane()
    head.weight.fill_(float("nan"))
    assert not model.is_sane()


def test_every_submodel_can_be_warmed_up(model: ResidentModel) -> None:
    for modality, space in model.spaces.items():
        model.warm_up(modality, list(space.granularities.values()), (1, 4))


def test_the_version_is_that_of_the_weights(model: ResidentModel, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    (tmp_path / "b").write_bytes(b"weight!")
    assert weights_version(tmp_path / "a") != weights_version(tmp_path / "b")
    assert len(model.version) == 12


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_a_gpu_answers_what_the_processor_answers(tiny_run: Path, dtype: str, tolerance: float) -> None:
    here, there = ResidentModel.load(tiny_run), ResidentModel.load(tiny_run, dtype, "cuda")
    for modality, space in here.spaces.items():
        for submodel in space.granularities.values():
            inputs = [here.example(modality)] * 3
            expected = here.compute(modality, submodel, inputs)
            assert np.abs(there.compute(modality, submodel, inputs) - expected).max() < tolerance
    assert there.is_sane()
