import pytest

from elastic.checkpoint import Manifest, save_model
from elastic.commands.select import Select
from elastic.errors import InvalidRequest, ProfileError, SloInfeasible
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import Device, Provenance
from elastic.profile.store import latency_path
from elastic.profile.tables import LatencyRow, LatencyTable, QualityRow, QualityTable

TIMES_MS = (1.0, 2.0, 4.0)
QUALITIES = (0.5, 0.6, 0.7)


def save_tables(run, space, device):
    provenance = Provenance(device=device, commit="abc", command="")
    submodels = list(space.granularities.values())
    LatencyTable(
        [
            LatencyRow(
                device=str(device), dtype="float32", num_threads=1, modality="image", submodel=submodel,
                batch_size=batch, n=9, mean_ms=ms, p50_ms=ms, p90_ms=ms * batch, p99_ms=ms, min_ms=ms, max_ms=ms,
            )
            for submodel, ms in zip(submodels, TIMES_MS, strict=True)
            for batch in (1, 4)
        ],
        provenance,
    ).save(latency_path(run))  # fmt: skip
    QualityTable(
        [
            QualityRow(
                task="image_retrieval", query_submodel=submodel, index_submodel=space.full, embed_dim=width,
                domain="mean", recall_at_1=quality - 0.1 * (width < 4), mmp_at_5=0.0, num_queries=9,
            )
            for submodel, quality in zip(submodels, QUALITIES, strict=True)
            for width in space.embed_dims
        ],
        provenance,
    ).save(run / "quality.parquet")  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    vision = VisionConfig(image_size=8, patch_size=4, width=8, depth=1, num_heads=2, mlp_ratio=4.0)
    encoder = Encoder(EncoderConfig(vision=vision, ffn_fractions=(0.25, 0.5, 1.0), embed_dims=(2, 4)))
    run = tmp_path / "run"
    save_model(run, encoder, Manifest(encoder=encoder.config, preprocess=Preprocess(image_size=8)))
    save_tables(run, encoder.space, device_fingerprint())
    return run


def test_the_front_is_printed_with_the_choice_and_its_reason(run_dir, capsys):
    Select(run_dir=run_dir, latency_slo_ms=3.0).run()
    shown = capsys.readouterr().out
    assert "g1 at embed_dim 4: highest quality within 3 ms (2.00 ms predicted)" in shown
    assert [word in shown for word in ("Pareto front", "<- chosen", "too slow")] == [True] * 3


def test_the_batch_size_decides_what_fits(run_dir, capsys):
    Select(run_dir=run_dir, latency_slo_ms=4.0, batch=4).run()
    assert "g0 at embed_dim 4" in capsys.readouterr().out


def test_a_width_can_be_asked_for(run_dir, capsys):
    Select(run_dir=run_dir, latency_slo_ms=9.0, embed_dim=2).run()
    assert "g2 at embed_dim 2" in capsys.readouterr().out


def test_what_cannot_be_met_prints_the_front_and_fails(run_dir, capsys):
    with pytest.raises(SloInfeasible, match="fastest"):
        Select(run_dir=run_dir, latency_slo_ms=0.5).run()
    assert "Pareto front" in capsys.readouterr().out
    with pytest.raises(SloInfeasible, match="fastest with enough"):
        Select(run_dir=run_dir, latency_slo_ms=1.0, min_quality=0.65).run()


def test_a_table_of_another_device_is_refused_unless_forced(run_dir, capsys):
    space = Manifest.from_json(run_dir / "elastic.json").space
    save_tables(run_dir, space, Device("another CPU", 1, "none"))
    with pytest.raises(ProfileError, match="another device"):
        Select(run_dir=run_dir, latency_slo_ms=3.0).run()
    Select(run_dir=run_dir, latency_slo_ms=3.0, force_foreign_tables=True).run()
    assert "g1 at embed_dim 4" in capsys.readouterr().out


def test_an_index_that_was_not_evaluated_is_an_error(run_dir):
    with pytest.raises(ProfileError, match="against index"):
        Select(run_dir=run_dir, latency_slo_ms=3.0, index="g0").run()


def test_text_queries_need_a_text_tower(run_dir):
    with pytest.raises(InvalidRequest, match="no text tower"):
        Select(run_dir=run_dir, latency_slo_ms=3.0, modality="text").run()


def test_a_thread_count_that_was_not_profiled_leaves_nothing_to_choose(run_dir):
    with pytest.raises(ProfileError, match="no profiled image submodel"):
        Select(run_dir=run_dir, latency_slo_ms=3.0, num_threads=7).run()
