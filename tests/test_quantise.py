import subprocess
import sys

import numpy as np
import pytest

from elastic.errors import InvalidRequest
from elastic.quantise import DTYPES, Dtype, Output, cut, dequantise, from_bytes, hamming, parse_dtype, quantise

RNG = np.random.default_rng(7)
UNIT = [cut(RNG.standard_normal(width).astype(np.float32), width) for width in (8, 16, 64, 128, 768)]
SPIKE = cut(np.r_[100.0, RNG.standard_normal(127)], 128)
"""Almost all of it in one coordinate: the worst case of a scale that is set by the largest."""


def there_and_back(values: np.ndarray, dtype: Dtype) -> np.ndarray:
    quantised, scale = quantise(values, dtype)
    return dequantise(from_bytes(quantised.tobytes(), dtype), dtype, len(values), scale)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first.astype(np.float64), second.astype(np.float64)
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def test_a_cut_is_the_head_at_length_one() -> None:
    assert cut(np.array([3.0, 4.0, 100.0]), 2).tolist() == pytest.approx([0.6, 0.8])
    assert cut(np.zeros(4), 2).tolist() == [0.0, 0.0]


def test_int8_is_symmetric_and_uint8_the_same_with_an_offset() -> None:
    values = np.array([1.0, -1.0, 0.0, 0.5, -0.5, 0.003], np.float32)
    signed, scale = quantise(values, "int8")
    assert signed.tolist() == [127, -127, 0, 64, -64, 0]
    assert scale == pytest.approx(1 / 127)
    unsigned, same_scale = quantise(values, "uint8")
    assert unsigned.tolist() == [255, 1, 128, 192, 64, 128]
    assert same_scale == scale


def test_the_largest_coordinate_uses_the_whole_range_whatever_the_width() -> None:
    for values in [*UNIT, SPIKE]:
        assert np.abs(quantise(values, "int8")[0].astype(int)).max() == 127


@pytest.mark.parametrize("values", [*UNIT, SPIKE], ids=len)
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_a_dequantised_coordinate_is_off_by_half_a_step_at_most(values: np.ndarray, dtype: Dtype) -> None:
    step = np.abs(values).max() / 127
    assert np.abs(there_and_back(values, dtype) - values).max() <= step / 2 * (1 + 1e-4)


@pytest.mark.parametrize("values", UNIT, ids=len)
def test_cosine_survives_quantisation(values: np.ndarray) -> None:
    # Off by e in length at most, a unit vector turns by asin(e) at most.
    widest_error = np.sqrt(len(values)) * np.abs(values).max() / 127 / 2
    for dtype in ("int8", "uint8"):
        assert cosine(there_and_back(values, dtype), values) >= np.sqrt(1 - widest_error**2)
        assert cosine(there_and_back(values, dtype), values) >= 0.9999
    assert cosine(there_and_back(values, "float16"), values) >= np.sqrt(1 - 2.0**-22)
    assert np.array_equal(there_and_back(values, "float32"), values)


def test_cosines_between_raw_int8_values_need_no_scale() -> None:
    first, second = UNIT[3], cut(UNIT[3] + 0.05 * RNG.standard_normal(128), 128)
    (raw_first, _), (raw_second, _) = quantise(first, "int8"), quantise(second, "int8")
    assert cosine(raw_first, raw_second) == pytest.approx(cosine(first, second), abs=1e-3)


def test_what_is_near_zero_everywhere_stays_near_zero() -> None:
    assert there_and_back(np.zeros(8, np.float32), "int8").tolist() == [0.0] * 8
    assert np.isfinite(there_and_back(np.full(8, 1e-44, np.float32), "int8")).all()


def test_bits_stand_highest_first_and_zero_counts_as_negative() -> None:
    values = np.array([1.0, -1.0, 0.0, 2.0, 1.0, -3.0, -0.1, 0.1, 5.0], np.float32)
    unsigned, _ = quantise(values, "ubinary")
    assert unsigned.tolist() == [0b10011001, 0b10000000]
    signed, _ = quantise(values, "binary")
    assert signed.tolist() == [0b10011001 - 128, 0b10000000 - 128]
    assert signed.dtype == np.int8


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
@pytest.mark.parametrize("width", [8, 12, 128])
def test_hamming_distance_counts_the_signs_that_differ(dtype: Dtype, width: int) -> None:
    first, second = RNG.standard_normal((2, width)).astype(np.float32)
    distance = hamming(quantise(first, dtype)[0], quantise(second, dtype)[0])
    assert distance == np.sum((first > 0) != (second > 0))


@pytest.mark.parametrize("dtype", ["binary", "ubinary"])
@pytest.mark.parametrize("width", [8, 12])
def test_bits_come_back_as_a_unit_vector_of_signs(dtype: Dtype, width: int) -> None:
    values = RNG.standard_normal(width).astype(np.float32)
    back = there_and_back(values, dtype)
    assert np.array_equal(back > 0, values > 0)
    assert np.linalg.norm(back) == pytest.approx(1.0)


def test_sizes_on_the_wire() -> None:
    sizes = {dtype: len(quantise(UNIT[3], dtype)[0].tobytes()) for dtype in DTYPES}
    assert sizes == {"float32": 512, "float16": 256, "int8": 128, "uint8": 128, "binary": 16, "ubinary": 16}


def test_values_from_the_wire_are_little_endian_and_writable() -> None:
    values = from_bytes(b"\x00\x00\x80\x3f", "float32")
    assert values.tolist() == [1.0]
    assert values.flags.writeable and values.dtype.isnative


def test_an_output_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="float32, float16"):
        parse_dtype("int4")
    with pytest.raises(InvalidRequest, match="negative"):
        Output(embed_dim=-1)


def test_quantising_loads_nothing_but_numpy() -> None:
    code = "import sys, elastic.quantise; print({'torch', 'ray', 'grpc', 'google.protobuf'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
