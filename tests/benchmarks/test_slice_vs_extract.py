"""The benchmark of slicing runs on any model and reports what it measured; its numbers are not tested."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from elastic.checkpoint import Manifest, save_model
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.submodel import Space

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "slice_vs_extract.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slice_vs_extract", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def encoder() -> Encoder:
    vision = VisionConfig(image_size=16, patch_size=8, width=24, depth=2, num_heads=3)
    return Encoder(EncoderConfig(vision=vision, embed_dims=(4, 8))).eval()


def test_it_measures_every_granularity_and_a_mix(benchmark: ModuleType, encoder: Encoder, tmp_path: Path):
    save_model(tmp_path / "run", encoder, Manifest(encoder=encoder.config, preprocess=Preprocess(image_size=16)))
    threads = torch.get_num_threads()
    out = tmp_path / "result.json"
    benchmark.main(benchmark.Options(run=tmp_path / "run", batch_sizes=(1, 2), rounds=2, min_rounds=2, out=out))
    torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    cells = {(pair["submodel"], pair["batch_size"]) for pair in report["pairs"]}
    submodels = {"ffn=12x2", "ffn=24x2", "ffn=24x1+48x1", "ffn=48x2", "ffn=96x2"}
    assert cells == {(submodel, size) for submodel in submodels for size in (1, 2)}
    assert report["summary"]["copied_weights"] == 0
    assert all(pair["max_difference"] < 1e-5 and pair["rounds"] == 2 for pair in report["pairs"])
    assert {"device", "commit", "command", "versions", "seed"} <= report.keys()


def test_a_copied_weight_is_found(benchmark: ModuleType, encoder: Encoder):
    weight = encoder.image.blocks[0].mlp.fc2.weight
    with torch.inference_mode(), benchmark.CopyFinder(encoder) as finder:
        torch.nn.functional.linear(torch.zeros(1, 12), weight[:, :12])
        assert finder.found == []
        weight[:, :12].contiguous()
    assert finder.found in (["clone"], ["contiguous"])  # which of the two names it depends on torch


def test_the_ratio_is_of_medians_with_an_interval_around_it(benchmark: ModuleType):
    space = Space(2, (12, 96), (8,))
    wall = np.array([[2.0, 1.0, 1.5], [2.2, 1.1, 2.0], [40.0, 1.0, 2.1], [1.8, 0.9, 2.2], [2.1, 1.0, 9.0]])
    pair = benchmark.summarise(space, space.full, 1, np.stack([wall, wall / 2], axis=-1), 0.0)
    assert pair.ratio == pytest.approx(2.1) and pair.cpu_ratio == pytest.approx(2.1)
    assert pair.same_loop_ratio == pytest.approx(1.0)
    assert pair.ratio_low <= pair.ratio <= pair.ratio_high
    assert (pair.slice_ms, pair.extracted_ms) == pytest.approx((2100, 1000))
