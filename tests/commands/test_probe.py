import pytest
import torch

from elastic.checkpoint import Manifest, save_model
from elastic.commands.probe import Probe
from elastic.data.tokenizer import train_tokenizer
from elastic.errors import ConfigError
from elastic.evaluate.probe_result import Probes
from elastic.model.config import EncoderConfig, Preprocess, TextConfig, VisionConfig
from elastic.model.encoder import Encoder

from ..evaluate.probing import records, write


@pytest.fixture
def run_dir(tmp_path):
    torch.manual_seed(0)
    vision = VisionConfig(image_size=8, patch_size=4, width=16, depth=1, num_heads=2, mlp_ratio=2.0)
    text = TextConfig(vocab_size=64, max_tokens=6, width=8, depth=1, num_heads=2, mlp_ratio=4.0)
    config = EncoderConfig(vision=vision, text=text, ffn_fractions=(0.5, 1.0), embed_dims=(4, 8))
    manifest = Manifest(encoder=config, preprocess=Preprocess(image_size=8))
    save_model(tmp_path / "tiny_run", Encoder(config), manifest, train_tokenizer(["a red", "a green", "a blue"], 64))
    return tmp_path / "tiny_run"


@pytest.fixture
def halves(tmp_path):
    return write(tmp_path / "halves.parquet", records(), without=("depth_mm",))


def test_probing_a_run_leaves_result_report_and_plot_in_it(run_dir, halves, capsys):
    Probe(run_dir=run_dir, source=halves, dense_steps=5).run()
    found = Probes.load(run_dir / "probes.json")
    assert found.run_name == "tiny_run"
    assert (run_dir / "probes.md").read_text().startswith("# Probes of `tiny_run`")
    assert (run_dir / "plots" / "probes.png").is_file()
    shown = capsys.readouterr().out
    for text in (
        "tiny_run on",
        "zero-shot top-1",
        "untrained",
        "linear mIoU",
        f"{found.value('linear_top1', found.space.full):.3f}",
    ):
        assert text in shown
    assert "not measured: depth, because the source has no column 'depth_mm'" in shown


def test_the_flags_reach_the_measurement(run_dir, halves, tmp_path):
    out = tmp_path / "elsewhere"
    Probe(
        run_dir=run_dir,
        source=halves,
        split="val",
        domains=("halves",),
        tasks=("zero_shot", "knn"),
        class_names="caption",
        batch_size=4,
        max_images=20,
        untrained=False,
        out=out,
    ).run()
    found = Probes.load(out / "probes.json")
    assert (found.split, found.domains, found.class_names) == ("val", ("halves",), "caption")
    assert found.num_images == {"val": 6, "train": 20}
    assert found.untrained == ()
    assert set(found.scales) == {"zero_shot_top1", "knn_1_top1", "knn_20_top1"}
    assert not (run_dir / "probes.json").exists()


def test_what_the_model_inside_the_package_reaches_goes_to_a_folder_of_its_name(halves, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Probe(source=halves, tasks=("knn",)).run()
    assert Probes.load(tmp_path / "runs" / "icons_vit" / "probes.json").run_name == "icons_vit"


def test_an_impossible_task_is_refused_before_anything_is_written(run_dir, halves):
    with pytest.raises(ConfigError, match="depth is impossible"):
        Probe(run_dir=run_dir, source=halves, tasks=("depth",)).run()
    assert not (run_dir / "probes.json").exists()


def test_a_device_that_is_not_there_is_refused(run_dir, halves, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="CUDA"):
        Probe(run_dir=run_dir, source=halves, device="cuda").run()
