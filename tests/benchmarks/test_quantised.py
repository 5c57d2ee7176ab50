"""The benchmark of quantised retrieval measures what it says; its numbers are not tested."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from elastic.quantise import cut, hamming, quantise

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "quantised.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quantised", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def whole() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((6, 16)).astype(np.float32)


def test_bits_are_ordered_by_hamming_distance(benchmark: ModuleType, whole: np.ndarray):
    signs = benchmark.restored(whole, 16, "ubinary")
    bits = [quantise(cut(row, 16), "ubinary")[0] for row in whole]
    for first in range(6):
        for second in range(6):
            # Of two vectors of d signs over sqrt(d), the inner product is 1 - 2 h / d.
            assert signs[first] @ signs[second] == pytest.approx(1 - 2 * hamming(bits[first], bits[second]) / 16)


def test_floats_are_cut_and_normalised_only(benchmark: ModuleType, whole: np.ndarray):
    assert benchmark.restored(whole, 8, "float32") == pytest.approx(np.stack([cut(row, 8) for row in whole]), abs=1e-6)


def test_sizes_are_those_of_an_index(benchmark: ModuleType):
    assert [benchmark.size_of(dtype, 128) for dtype in ("float32", "int8", "ubinary")] == [512, 128, 16]
