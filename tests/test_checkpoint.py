"""What a run leaves on disk: all or nothing, refused when it does not fit, read back exactly."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from elastic import checkpoint
from elastic.checkpoint import (
    CHECKPOINTS,
    MANIFEST,
    TOKENIZER,
    WEIGHTS,
    Manifest,
    latest_checkpoint,
    latest_step,
    list_checkpoints,
    load_checkpoint,
    load_model,
    read_weights,
    resolve_run,
    save_checkpoint,
    save_manifest,
    save_model,
)
from elastic.data.tokenizer import Tokenizer, train_tokenizer
from elastic.errors import CheckpointError
from elastic.model.config import EncoderConfig, Preprocess, TextConfig, VisionConfig
from elastic.model.encoder import Encoder

VISION = VisionConfig(image_size=16, patch_size=8, width=24, depth=2, num_heads=3)
TEXT = TextConfig(vocab_size=64, max_tokens=8, width=16, num_heads=2)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(EncoderConfig(vision=VISION, text=TEXT, embed_dims=(4, 8))).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a red bus", "a blue cat", "a red cat"], 64)


@pytest.fixture
def manifest(encoder: Encoder) -> Manifest:
    return Manifest(
        encoder=encoder.config,
        preprocess=Preprocess(image_size=16, mean=(0.1, 0.2, 0.3)),
        domains=("emoji", "flags"),
        tables={"latency": "latency.parquet"},
        provenance={"recipe": "debug", "step": 7},
    )


@pytest.fixture
def run(tmp_path: Path, encoder: Encoder, manifest: Manifest, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "run", encoder, manifest, tokenizer)
    return tmp_path / "run"


def test_a_saved_model_is_read_back_exactly(run: Path, encoder: Encoder, manifest: Manifest, tokenizer: Tokenizer):
    found, found_manifest, found_tokenizer = load_model(run)
    assert found_manifest == manifest and found.config == encoder.config and not found.training
    assert found.state_dict().keys() == encoder.state_dict().keys()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in encoder.state_dict().items())
    assert found_tokenizer is not None and found_tokenizer.to_json() == tokenizer.to_json()


def test_loaded_weights_are_memory_mapped_not_copied(run: Path):
    found, _, _ = load_model(run)
    parameter = found.image.blocks[0].mlp.fc1.weight
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(run / WEIGHTS) in line]
    bounds = [tuple(int(part, 16) for part in fields[0].split("-")) for fields in mapped]
    assert any(start <= parameter.data_ptr() < end for start, end in bounds)


def test_a_loaded_model_can_be_trained_without_touching_the_file(run: Path):
    before = (run / WEIGHTS).read_bytes()
    found, _, _ = load_model(run)
    with torch.no_grad():
        for parameter in found.parameters():
            assert parameter.requires_grad
            parameter.add_(1)
    assert (run / WEIGHTS).read_bytes() == before


def test_other_users_may_read_a_run(run: Path):
    assert (run / WEIGHTS).stat().st_mode & 0o044 == 0o044


def test_the_image_towers_names_are_timms(run: Path):
    names = {name.removeprefix("image.") for name in read_weights(run / WEIGHTS) if name.startswith("image.")}
    assert names == set(VISION.create(8).state_dict())


def test_an_encoder_without_text_needs_no_tokenizer(tmp_path: Path, manifest: Manifest):
    encoder = Encoder(EncoderConfig(vision=VISION, embed_dims=(4, 8)))
    save_model(tmp_path, encoder, replace(manifest, encoder=encoder.config))
    assert load_model(tmp_path)[2] is None and not (tmp_path / TOKENIZER).exists()


def test_the_manifest_says_the_space_to_other_readers(run: Path):
    values = json.loads((run / MANIFEST).read_text())
    assert values["format_version"] == 1
    assert values["space"] == {"depth": 2, "ffn_dims": [12, 24, 48, 96], "embed_dims": [4, 8]}


def test_a_manifest_is_replaced_whole(run: Path, manifest: Manifest):
    save_manifest(run, replace(manifest, tables={"latency": "l.parquet", "quality": "q.parquet"}))
    assert load_model(run)[1].tables == {"latency": "l.parquet", "quality": "q.parquet"}
    assert sorted(path.name for path in run.iterdir()) == sorted([MANIFEST, WEIGHTS, TOKENIZER])


def test_another_format_version_is_refused(run: Path):
    edit(run, format_version=2)
    with pytest.raises(CheckpointError, match="format version 2; this release reads version 1"):
        load_model(run)


@pytest.mark.parametrize("change", [{"surprise": 1}, {"preprocess": None}, {"encoder": {"vision": {"width": 1}}}])
def test_a_manifest_with_other_fields_is_refused(run: Path, change: dict):
    edit(run, **change)
    with pytest.raises(CheckpointError, match="is not a manifest"):
        load_model(run)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff"])
def test_a_file_that_is_no_manifest_is_refused(run: Path, text: str):
    (run / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=MANIFEST):
        load_model(run)


def test_weights_of_other_shapes_are_refused_with_the_differences(run: Path):
    values = json.loads((run / MANIFEST).read_text())
    values["encoder"]["embed_dims"] = [4, 16]
    (run / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"image.head.bias: expected \(16,\), found \(8,\)"):
        load_model(run)


def test_missing_and_foreign_weights_are_named(run: Path):
    weights = read_weights(run / WEIGHTS)
    weights = {name: tensor.clone() for name, tensor in weights.items() if name != "image.pos_embed"}
    safetensors.torch.save_file(weights | {"stranger": torch.zeros(2)}, run / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        load_model(run)
    assert "image.pos_embed: expected (1, 5, 24), found nothing" in str(caught.value)
    assert "stranger: expected nothing, found (2,)" in str(caught.value)


def test_truncated_weights_are_refused(run: Path):
    (run / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_model(run)


def test_a_lost_tokenizer_is_reported(run: Path):
    (run / TOKENIZER).unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer.json: does not exist"):
        load_model(run)


def test_a_directory_without_a_model_is_refused_with_advice(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"model.safetensors and elastic.json missing; .*elastic train"):
        resolve_run(tmp_path)


def test_no_run_means_the_bundled_one(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "BUNDLED_RUN", run)
    assert resolve_run(None) == run
    assert load_model()[1].domains == ("emoji", "flags")


def test_a_training_checkpoint_is_read_back_exactly(tmp_path: Path):
    state = {"step": 3, "moments": {"a": torch.randn(4)}, "rng": torch.get_rng_state(), "names": ["x"], "lr": 1e-3}
    path = save_checkpoint(tmp_path, state, 3, keep_last=2)
    found = load_checkpoint(path)
    assert path == tmp_path / CHECKPOINTS / "step_00000003"
    assert torch.equal(found["moments"]["a"], state["moments"]["a"]) and torch.equal(found["rng"], state["rng"])
    assert (found["step"], found["names"], found["lr"]) == (3, ["x"], 1e-3)


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path):
    for step in (1, 2, 10, 9):
        save_checkpoint(tmp_path, {"step": step}, step, keep_last=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_00000009", "step_00000010"]
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and load_checkpoint(newest)["step"] == latest_step(tmp_path) == 10


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path):
    for value in (1, 2):
        path = save_checkpoint(tmp_path, {"value": value}, 5, keep_last=1)
    assert load_checkpoint(path)["value"] == 2


def test_a_run_without_checkpoints_has_no_latest(tmp_path: Path):
    assert latest_checkpoint(tmp_path) is None and latest_step(tmp_path) == 0


def test_an_interrupted_write_is_not_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path, {"step": 1}, 1, keep_last=1)

    def die(_: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {"step": 2}, 2, keep_last=1)
    monkeypatch.undo()
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and load_checkpoint(newest) == {"step": 1}
    save_checkpoint(tmp_path, {"step": 2}, 2, keep_last=1)  # the remains are in nobody's way
    assert [path.name for path in (tmp_path / CHECKPOINTS).iterdir()] == ["step_00000002"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "gone"])
def test_a_damaged_checkpoint_is_reported_never_skipped(tmp_path: Path, damage: str):
    save_checkpoint(tmp_path, {"step": 1}, 1, keep_last=2)
    path = save_checkpoint(tmp_path, {"step": 2, "weights": torch.ones(4096)}, 2, keep_last=2)
    file = path / "state.pt"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    file.write_bytes({"truncated": content[:-500], "empty": b"", "flipped": content, "gone": b""}[damage])
    if damage == "gone":
        file.unlink()
    with pytest.raises(CheckpointError, match=r"step_00000002.*missing or damaged.*delete .* the checkpoint before it"):
        load_checkpoint(path)


def edit(run: Path, **changes: object) -> None:
    """Change top-level fields of a manifest on disk."""
    values = json.loads((run / MANIFEST).read_text()) | changes
    (run / MANIFEST).write_text(json.dumps(values))
