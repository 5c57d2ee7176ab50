"""`elastic simulate` on a tiny run with invented tables."""

import json
from pathlib import Path

import pytest
from PIL import Image

from elastic.checkpoint import Manifest, save_model
from elastic.errors import ConfigError, ProfileError
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.profile.store import LATENCY, QUALITY
from elastic.profile.tables import LatencyRow, LatencyTable, QualityRow, QualityTable
from elastic.simulate.command import PLOT, RESULT, Simulate
from elastic.simulate.fleets import OURS


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    vision = VisionConfig(image_size=8, patch_size=4, width=8, depth=1, num_heads=2)
    encoder = Encoder(EncoderConfig(vision=vision, ffn_fractions=(0.25, 1.0), embed_dims=(4,)))
    run = tmp_path / "run"
    save_model(run, encoder, Manifest(encoder=encoder.config, preprocess=Preprocess(image_size=8)))
    provenance, space = collect(device_fingerprint()), encoder.space
    pairs = [*zip(space.granularities.values(), (2.0, 8.0), (0.5, 0.7), strict=True)]
    LatencyTable(
        [
            LatencyRow(
                device=str(provenance.device), dtype="float32", num_threads=1, modality="image", submodel=submodel,
                batch_size=size, n=9, mean_ms=ms, p50_ms=ms * size, p90_ms=ms * size, p99_ms=ms * size,
                min_ms=ms * size, max_ms=ms * size,
            )
            for submodel, ms, _ in pairs
            for size in (1, 4)
        ],
        provenance,
    ).save(run / LATENCY)  # fmt: skip
    QualityTable(
        [
            QualityRow(
                task="image_retrieval", query_submodel=submodel, index_submodel=space.full, embed_dim=4,
                domain="mean", recall_at_1=quality, mmp_at_5=0.0, num_queries=9,
            )
            for submodel, _, quality in pairs
        ],
        provenance,
    ).save(run / QUALITY)  # fmt: skip
    return run


def test_policies_are_compared_and_the_result_is_kept(run_dir: Path, capsys: pytest.CaptureFixture):
    Simulate(run_dir=run_dir, duration_s=1, seeds=2, policies=("lookahead", "static=largest")).run()
    shown = capsys.readouterr().out
    assert "lookahead" in shown and "static=largest" in shown
    result = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))
    # What the largest could just serve, and four times its time, unless asked for.
    assert result["rate"] == 125 and result["latency_slo_ms"] == 32
    assert set(result["scores"]) == {"lookahead", "static=largest"}
    assert set(result["scores"]["lookahead"]) == {"0", "1"}
    assert [one["requests"] for one in result["traffic"]] == pytest.approx([125, 125], rel=0.4)
    with Image.open(run_dir / PLOT) as plot:
        assert plot.size[0] > 500


def test_fleets_that_follow_their_load_are_compared_with_fixed_ones(run_dir: Path, capsys: pytest.CaptureFixture):
    Simulate(run_dir=run_dir, autoscale=(1, 3), shape="step", duration_s=10, seeds=1, rate=30).run()
    shown = capsys.readouterr().out
    assert "1, fixed" in shown and "3, fixed" in shown and OURS in shown
    scores = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))["scores"]
    assert scores["3, fixed"]["0"]["replica_seconds"] == 30
    assert 10 <= scores[OURS]["0"]["replica_seconds"] <= 30
    with Image.open(run_dir / PLOT) as plot:
        assert plot.size[0] > 500


def test_replicas_that_die_are_simulated(run_dir: Path, tmp_path: Path):
    Simulate(run_dir=run_dir, duration_s=1, seeds=1, num_replicas=3, failures=2, rate=50, out=tmp_path).run()
    scores = json.loads((tmp_path / RESULT).read_text(encoding="utf-8"))["scores"]
    assert scores["lookahead"]["0"]["attainment"] > 0.9


def test_a_recorded_trace_is_replayed_at_the_rate_asked_for(run_dir: Path, capsys: pytest.CaptureFixture):
    trace = run_dir / "monday.txt"
    trace.write_text("".join(f"{number**2}\n" for number in range(300)), encoding="utf-8")
    Simulate(run_dir=run_dir, trace=trace, duration_s=1, seeds=2, rate=80, policies=("lookahead",)).run()
    assert "monday.txt arrivals at 80/s" in " ".join(capsys.readouterr().out.split())
    result = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))
    assert [one["requests"] for one in result["traffic"]] == [80, 80]
    assert result["options"]["trace"] == str(trace)


def test_an_unknown_policy_is_told_before_anything_is_simulated(run_dir: Path):
    with pytest.raises(ConfigError, match="must be one of"):
        Simulate(run_dir=run_dir, policies=("lookahead", "magic")).run()
    assert not (run_dir / RESULT).exists()


def test_a_run_that_was_never_profiled_says_so(run_dir: Path):
    (run_dir / LATENCY).unlink()
    with pytest.raises(ProfileError, match="elastic profile"):
        Simulate(run_dir=run_dir).run()


def test_times_that_were_not_measured_are_not_guessed(run_dir: Path):
    with pytest.raises(ProfileError, match="not measured with dtype float32 and 2 thread"):
        Simulate(run_dir=run_dir, num_threads=2).run()


@pytest.mark.parametrize(
    "wrong", [{"duration_s": 0}, {"seeds": 0}, {"failures": 1}, {"overhead_ms": -1.0}, {"autoscale": (3, 2)}]
)
def test_settings_outside_their_range_are_refused(wrong: dict):
    with pytest.raises(ConfigError):
        Simulate(**wrong)
