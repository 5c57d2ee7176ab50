import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elastic.errors import ProfileError
from elastic.profile.provenance import Device, Provenance
from elastic.profile.tables import LatencyRow, LatencyTable, QualityRow, QualityTable, pool_adjacent_violators
from elastic.submodel import Submodel

HERE = Device(processor="CPU A", num_cores=2, isa="AVX2")
PROVENANCE = Provenance(device=HERE, commit="abc", command="elastic profile", versions={"torch": "2"})
SMALL, LARGE = Submodel((8, 8)), Submodel((8, 16))


def latency_row(submodel, batch_size, ms, **changes):
    row = LatencyRow(
        device=str(HERE),
        dtype="float32",
        num_threads=1,
        modality="image",
        submodel=submodel,
        batch_size=batch_size,
        n=10,
        mean_ms=ms,
        p50_ms=ms,
        p90_ms=ms + 1,
        p99_ms=ms + 2,
        min_ms=ms,
        max_ms=ms + 3,
    )
    return replace(row, **changes)


def quality_row(query, index, embed_dim, r1, **changes):
    row = QualityRow(
        task="image_retrieval",
        query_submodel=query,
        index_submodel=index,
        embed_dim=embed_dim,
        domain="mean",
        recall_at_1=r1,
        mmp_at_5=r1 / 2,
        num_queries=7,
    )
    return replace(row, **changes)


def table(*rows):
    return LatencyTable(rows, PROVENANCE)


def test_prediction_is_linear_between_measured_batch_sizes_and_exact_on_them():
    measured = table(latency_row(SMALL, 4, 10.0), latency_row(SMALL, 1, 4.0), latency_row(SMALL, 8, 30.0))
    predicted = [measured.predict("image", SMALL, size, "p50") for size in (1, 2, 4, 6, 8)]
    assert predicted == [4.0, 6.0, 10.0, 20.0, 30.0]
    assert measured.predict("image", SMALL, 6) == 21.0  # p90 by default


def test_prediction_never_falls_as_the_batch_grows_even_when_the_measurement_did():
    times = {1: 3.0, 2: 9.0, 4: 5.0, 8: 6.0, 16: 20.0}
    measured = table(*(latency_row(SMALL, size, ms) for size, ms in times.items()))
    predicted = [measured.predict("image", SMALL, size, "p50") for size in range(1, 17)]
    assert predicted == sorted(predicted)
    assert [predicted[size - 1] for size in times] == [3.0, 9.0, 9.0, 9.0, 20.0]


@pytest.mark.parametrize(
    ("modality", "submodel", "batch_size", "problem"),
    [
        ("image", LARGE, 1, "no image row"),
        ("text", SMALL, 1, "no text row"),
        ("image", SMALL, 9, "outside the measured 1..8"),
        ("image", SMALL, 0, "outside the measured 1..8"),
    ],
)
def test_a_missing_cell_is_an_error_that_names_it(modality, submodel, batch_size, problem):
    measured = table(latency_row(SMALL, 1, 4.0), latency_row(SMALL, 8, 30.0))
    with pytest.raises(ProfileError, match=problem):
        measured.predict(modality, submodel, batch_size)


def test_rows_of_several_dtypes_must_be_narrowed_before_predicting():
    both = table(latency_row(SMALL, 1, 4.0), latency_row(SMALL, 1, 2.0, dtype="bfloat16"))
    with pytest.raises(ProfileError, match="several dtypes"):
        both.predict("image", SMALL, 1)
    assert both.where(dtype="bfloat16").predict("image", SMALL, 1, "p50") == 2.0


def test_a_new_measurement_replaces_only_the_rows_of_its_own_dtype_and_threads():
    before = table(latency_row(SMALL, 1, 4.0), latency_row(SMALL, 1, 2.0, dtype="bfloat16"))
    updated = before.update(table(latency_row(SMALL, 2, 9.0)))
    assert [(row.dtype, row.batch_size) for row in updated.rows] == [("bfloat16", 1), ("float32", 2)]


def test_pooling_violators_gives_the_nearest_non_decreasing_sequence():
    assert pool_adjacent_violators([1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    assert pool_adjacent_violators([4.0, 1.0, 1.0, 5.0]) == [2.0, 2.0, 2.0, 5.0]
    assert pool_adjacent_violators([1.0, 3.0, 2.0, 2.0]) == pytest.approx([1.0, 7 / 3, 7 / 3, 7 / 3])
    assert pool_adjacent_violators([]) == []


def test_an_isotonic_table_rises_with_the_submodel_and_with_the_batch():
    noisy = {(SMALL, 1): 5.0, (SMALL, 2): 4.0, (LARGE, 1): 3.0, (LARGE, 2): 9.0}
    smooth = table(*(latency_row(s, b, ms) for (s, b), ms in noisy.items())).isotonic()
    time = {(row.submodel, row.batch_size): row.p50_ms for row in smooth.rows}
    assert time[SMALL, 1] <= time[LARGE, 1] <= time[LARGE, 2]
    assert time[SMALL, 1] <= time[SMALL, 2] <= time[LARGE, 2]
    assert sum(time.values()) == pytest.approx(sum(noisy.values()))  # pooling averages, it adds no time


def test_latency_table_survives_the_disk_with_its_provenance(tmp_path):
    measured = table(latency_row(SMALL, 1, 4.0), latency_row(LARGE, 2, 5.5, modality="text"))
    measured.save(tmp_path / "latency.parquet")
    read = LatencyTable.load(tmp_path / "latency.parquet")
    assert read.rows == measured.rows
    assert read.provenance == PROVENANCE
    assert read.submodels("text") == [LARGE]


def test_quality_table_survives_the_disk_with_its_provenance(tmp_path):
    rows = [quality_row(SMALL, LARGE, 16, 0.25), quality_row(SMALL, LARGE, 16, 0.5, domain="flags")]
    QualityTable(rows, PROVENANCE).save(tmp_path / "quality.parquet")
    read = QualityTable.load(tmp_path / "quality.parquet")
    assert read.rows == tuple(rows)
    assert read.provenance == PROVENANCE


def test_columns_carry_their_units_in_the_file(tmp_path):
    table(latency_row(SMALL, 1, 4.0)).save(tmp_path / "latency.parquet")
    names = set(pq.read_schema(tmp_path / "latency.parquet").names)
    assert {"mean_ms", "p50_ms", "p90_ms", "p99_ms", "min_ms", "max_ms"} <= names


def test_a_missing_file_says_how_to_make_it(tmp_path):
    with pytest.raises(ProfileError, match="run `elastic profile` first"):
        LatencyTable.load(tmp_path / "latency.parquet")


def test_another_parquet_file_is_not_taken_for_a_table(tmp_path):
    path = tmp_path / "quality.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ProfileError, match="is not a quality table"):
        QualityTable.load(path)
    table(latency_row(SMALL, 1, 4.0)).save(path)
    with pytest.raises(ProfileError, match="is not a quality table"):
        QualityTable.load(path)


def test_a_table_of_another_device_is_refused_unless_forced():
    elsewhere = replace(HERE, isa="AVX512")
    with pytest.raises(ProfileError, match="isa: 'AVX2' != 'AVX512'"):
        table().require_device(elsewhere)
    table().require_device(elsewhere, force=True)
    table().require_device(HERE)


def test_quality_is_looked_up_by_query_index_and_width():
    found = QualityTable(
        [
            quality_row(SMALL, SMALL, 16, 0.2),
            quality_row(SMALL, LARGE, 16, 0.3),
            quality_row(SMALL, LARGE, 16, 0.9, domain="flags"),
            quality_row(SMALL, LARGE, 8, 0.1, task="text_to_image"),
        ],
        PROVENANCE,
    )
    assert found.row(SMALL, LARGE, 16).recall_at_1 == 0.3
    assert found.row(SMALL, LARGE, 16, domain="flags").recall_at_1 == 0.9
    assert (found.embed_dims(), found.embed_dims("text_to_image")) == ([16], [8])
    assert (found.index_submodels(), found.domains()) == ([SMALL, LARGE], ["flags"])
    with pytest.raises(ProfileError, match="elastic evaluate"):
        found.row(LARGE, LARGE, 16)


def test_tables_import_neither_torch_nor_ray():
    code = "import sys, elastic.profile.tables; print(sorted({'torch', 'ray'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
