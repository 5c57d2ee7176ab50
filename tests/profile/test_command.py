import pytest
import torch

from elastic.checkpoint import Manifest, save_model
from elastic.errors import ConfigError
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.profile.command import Profile, render
from elastic.profile.device import device_fingerprint
from elastic.profile.latency import LatencyConfig
from elastic.profile.store import load_latency

QUICK = LatencyConfig(batch_sizes=(1, 2), rounds=1, warmup_rounds=0)


@pytest.fixture
def run_dir(tmp_path):
    vision = VisionConfig(image_size=8, patch_size=4, width=8, depth=1, num_heads=2, mlp_ratio=2.0)
    encoder = Encoder(EncoderConfig(vision=vision, ffn_fractions=(0.5, 1.0), embed_dims=(2, 4)))
    save_model(tmp_path / "run", encoder, Manifest(encoder=encoder.config, preprocess=Preprocess(image_size=8)))
    return tmp_path / "run"


def test_profiling_a_run_leaves_a_table_that_this_device_accepts(run_dir, capsys):
    Profile(run_dir=run_dir, latency=QUICK).run()
    table = load_latency(run_dir, device_fingerprint())
    space = Manifest.from_json(run_dir / "elastic.json").space
    assert table.submodels() == list(space.mixes())
    assert table.batch_sizes() == [1, 2]
    assert Manifest.from_json(run_dir / "elastic.json").tables == {"latency": "latency.parquet"}
    assert "image encoder" in capsys.readouterr().out


def test_profiling_with_another_dtype_keeps_the_rows_of_the_first(run_dir):
    Profile(run_dir=run_dir, latency=QUICK).run()
    bfloat16 = LatencyConfig(batch_sizes=(1,), rounds=1, warmup_rounds=0, dtype="bfloat16")
    Profile(run_dir=run_dir, latency=bfloat16).run()
    table = load_latency(run_dir, device_fingerprint())
    assert {(row.dtype, row.batch_size) for row in table.rows} == {("float32", 1), ("float32", 2), ("bfloat16", 1)}


def test_the_printed_table_names_submodels_and_their_cost(run_dir):
    Profile(run_dir=run_dir, latency=QUICK).run()
    config = Manifest.from_json(run_dir / "elastic.json").encoder
    table = load_latency(run_dir, device_fingerprint())
    for with_p90 in (False, True):
        shown = render(table, config, "image", with_p90=with_p90)
        assert [column.header for column in shown.columns] == ["submodel", "params", "MFLOPs", "1", "2"]
        assert shown.row_count == 2
        assert all((" / " in cell) is with_p90 for cell in shown.columns[3].cells)


def test_a_device_that_is_not_there_is_refused(run_dir, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA"):
        Profile(run_dir=run_dir, device="cuda", latency=QUICK).run()
