"""The benchmark of shared weights tells mapped weights from copied ones; its numbers are not tested."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from elastic.checkpoint import WEIGHTS, Manifest, load_model, save_model
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "shared_weights.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("shared_weights", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    vision = VisionConfig(image_size=16, patch_size=8, width=256, depth=2, num_heads=4)
    encoder = Encoder(EncoderConfig(vision=vision))
    save_model(tmp_path / "run", encoder, Manifest(encoder=encoder.config, preprocess=Preprocess(image_size=16)))
    return tmp_path / "run"


def test_the_weights_file_is_found_among_the_mappings_of_a_process(benchmark: ModuleType, run: Path):
    encoder, _, _ = load_model(run)
    assert sum(float(parameter.detach().sum()) for parameter in encoder.parameters()) != 0  # touches every page
    found = benchmark.pss_of_file(Path("/proc/self/smaps").read_text(), str(run / WEIGHTS))
    assert found * 1024 == pytest.approx((run / WEIGHTS).stat().st_size, rel=0.05)
    assert benchmark.pss_of_file(Path("/proc/self/smaps").read_text(), "/no/such/file") == 0


def test_a_field_of_the_rollup_is_not_taken_for_another_that_begins_alike(benchmark: ModuleType):
    rollup = "00400000-7fff0000 ---p 00000000 00:00 0 [rollup]\nPss_Anon:  7 kB\nPss:  12 kB\n"
    assert (benchmark.kib(rollup, "Pss"), benchmark.kib(rollup, "Pss_Anon")) == (12, 7)


@pytest.mark.parametrize("shared", [True, False])
def test_weights_are_held_as_asked(benchmark: ModuleType, run: Path, shared: bool, monkeypatch: pytest.MonkeyPatch):
    held: list[int] = []
    encoder, manifest, tokenizer = load_model(run)
    monkeypatch.setattr(benchmark, "load_model", lambda path: (encoder, manifest, tokenizer))
    mapped = {parameter.data_ptr() for parameter in encoder.parameters()}

    class Now:
        def wait(self) -> None:
            held.append(len(mapped & {parameter.data_ptr() for parameter in encoder.parameters()}))

    threads = torch.get_num_threads()
    benchmark.hold(run, shared, Now(), Now())
    torch.set_num_threads(threads)
    assert held[0] == (len(mapped) if shared else 0)


def test_what_a_further_process_adds_is_the_slope(benchmark: ModuleType):
    rows = [
        benchmark.Memory("m", 1.0, number, shared, 100.0 + number * (10.0 if shared else 50.0), 0.0, 0.0)
        for number in (1, 3)
        for shared in (True, False)
    ]
    assert benchmark.added_per_process(rows, "m") == {"shared": 10.0, "copied": 50.0}
