import pytest

from elastic.checkpoint import BUNDLED_RUN, MANIFEST, Manifest, save_manifest
from elastic.errors import ProfileError
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.profile import store
from elastic.profile.provenance import Device, Provenance
from elastic.profile.tables import LatencyTable

HERE, THERE = Device("CPU A", 2, "AVX2"), Device("CPU B", 8, "AVX512")


def table(device):
    return LatencyTable([], Provenance(device=device, commit="abc", command=""))


def test_a_run_keeps_its_latency_table_beside_its_weights(tmp_path):
    assert store.latency_path(tmp_path / "run") == tmp_path / "run" / "latency.parquet"


def test_a_table_of_this_device_is_found(tmp_path):
    table(HERE).save(tmp_path / "latency.parquet")
    assert store.load_latency(tmp_path, HERE).provenance.device == HERE


def test_a_table_of_another_device_needs_consent(tmp_path):
    table(THERE).save(tmp_path / "latency.parquet")
    with pytest.raises(ProfileError, match="another device"):
        store.load_latency(tmp_path, HERE)
    assert store.load_latency(tmp_path, HERE, any_device=True).provenance.device == THERE


def test_a_run_inside_the_package_is_measured_into_the_users_cache(tmp_path, monkeypatch):
    package, cache = tmp_path / "package", tmp_path / "cache"
    run = package / "bundled" / "model"
    run.mkdir(parents=True)
    (run / MANIFEST).write_text("{}")
    monkeypatch.setattr(store, "_PACKAGE_DIR", package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    path = store.latency_path(run)
    assert path.is_relative_to(cache)
    table(THERE).save(run / "latency.parquet")  # as shipped
    with pytest.raises(ProfileError, match="another device"):
        store.load_latency(run, HERE)
    table(HERE).save(path)
    assert store.load_latency(run, HERE).provenance.device == HERE
    (run / MANIFEST).write_text('{"another": "model"}')
    assert store.latency_path(run) != path


def test_a_table_beside_the_weights_is_named_in_the_manifest_and_one_elsewhere_is_not(tmp_path):
    config = EncoderConfig(vision=VisionConfig(image_size=32, patch_size=16))
    save_manifest(
        tmp_path, Manifest(encoder=config, preprocess=Preprocess(image_size=32), tables={"quality": "q.parquet"})
    )
    store.record_table(tmp_path, tmp_path / "latency.parquet")
    store.record_table(tmp_path, tmp_path / "elsewhere" / "other.parquet")
    tables = Manifest.from_json(tmp_path / MANIFEST).tables
    assert tables == {"quality": "q.parquet", "latency": "latency.parquet"}


def test_the_bundled_run_counts_as_inside_the_package():
    assert BUNDLED_RUN.is_relative_to(store._PACKAGE_DIR)


def test_a_run_that_was_never_evaluated_says_how_to(tmp_path):
    with pytest.raises(ProfileError, match="elastic evaluate"):
        store.load_quality(tmp_path)
