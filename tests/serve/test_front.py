from dataclasses import replace
from pathlib import Path

import pytest

from elastic.errors import ProfileError
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.profile.store import load_latency, load_quality
from elastic.profile.tables import LatencyTable, QualityRow, QualityTable
from elastic.serve.config import ServeConfig
from elastic.serve.front import build_front, build_fronts
from elastic.submodel import Space

SPACE = Space(depth=2, ffn_dims=(16, 32, 64, 128), embed_dims=(8, 16, 32))


@pytest.fixture
def tables(tiny_run: Path) -> tuple[LatencyTable, QualityTable]:
    return load_latency(tiny_run, device_fingerprint()), load_quality(tiny_run)


def test_a_front_ascends_in_time_and_quality_and_knows_every_batch_size(
    tables: tuple[LatencyTable, QualityTable],
) -> None:
    front = build_front(*tables, SPACE)
    assert [level.name for level in front.levels] == ["S", "M", "L", "XL"]
    assert front.levels[0].batch_ms == (100.0, 125.0, 150.0, 175.0, 200.0, 225.0, 250.0, 275.0)
    assert front.levels[3].quality == pytest.approx({8: 0.15, 16: 0.3, 32: 0.6})


def test_batches_are_never_larger_than_configured_or_profiled(tables: tuple[LatencyTable, QualityTable]) -> None:
    assert build_front(*tables, SPACE, max_batch_size=3).max_batch_size == 3
    assert build_front(*tables, SPACE, max_batch_size=500).max_batch_size == 8


def test_a_submodel_that_another_beats_is_not_on_the_front(tables: tuple[LatencyTable, QualityTable]) -> None:
    latency, quality = tables
    worse = [row for row in quality.rows if row.query_submodel != SPACE.uniform(32)]
    dull = QualityTable(
        [*worse, *(row_with_quality(row, 0.01) for row in quality.rows if row not in worse)], quality.provenance
    )
    assert [level.name for level in build_front(latency, dull, SPACE).levels] == ["S", "L", "XL"]


def test_only_modalities_with_both_tables_are_served(tables: tuple[LatencyTable, QualityTable], tiny_run: Path) -> None:
    latency, quality = tables
    images = QualityTable([row for row in quality.rows if row.task == "image_retrieval"], quality.provenance)
    fronts = build_fronts(latency, images, {"image": SPACE, "text": SPACE}, ServeConfig(run=tiny_run))
    assert set(fronts) == {"image"}


def test_a_table_for_other_settings_is_refused_with_the_command_that_makes_one(
    tables: tuple[LatencyTable, QualityTable], tiny_run: Path
) -> None:
    config = ServeConfig(run=tiny_run, num_threads=2)
    with pytest.raises(ProfileError, match=r"elastic profile .*num-threads 2"):
        build_fronts(*tables, {"image": SPACE}, config)


def test_tables_without_a_common_modality_are_refused(
    tables: tuple[LatencyTable, QualityTable], tiny_run: Path
) -> None:
    empty = QualityTable([], collect(device_fingerprint()))
    with pytest.raises(ProfileError, match="elastic evaluate"):
        build_fronts(tables[0], empty, {"image": SPACE}, ServeConfig(run=tiny_run))


def row_with_quality(row: QualityRow, value: float) -> QualityRow:
    return replace(row, recall_at_1=value)
