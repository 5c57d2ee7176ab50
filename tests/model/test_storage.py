"""Files of a run: whole or not there, refused with the reason when they are not what they should be."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from elastic.errors import CheckpointError
from elastic.model.storage import (
    MANIFEST,
    WEIGHTS,
    check_new,
    check_run,
    load_weights,
    read_manifest,
    read_weights,
    run_kind,
    tuples,
    write_json,
    write_text,
    write_weights,
)


@pytest.fixture(params=["encoder", "decoder"])
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write_weights(tmp_path / WEIGHTS, {"a": torch.ones(2)})
    write_json(tmp_path / MANIFEST, {"format_version": 1, request.param: {}})
    return tmp_path


def test_the_manifest_says_what_a_run_holds(run: Path):
    kind = run_kind(run)
    assert read_manifest(run / MANIFEST) == {kind: {}}
    check_run(run, kind)


def test_a_run_of_the_other_kind_is_refused_with_both_kinds_named(run: Path):
    other = "encoder" if run_kind(run) == "decoder" else "decoder"
    with pytest.raises(CheckpointError, match=r"holds an? .*; this needs an? .*: name another run") as caught:
        check_run(run, other)
    assert {"an image-text encoder", "a language model"} == {
        caught.value.problem.removeprefix("holds "),
        caught.value.advice.removeprefix("this needs ").removesuffix(": name another run"),
    }


def test_a_directory_without_a_model_is_refused_with_advice(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"model.safetensors and elastic.json missing; .*elastic train"):
        run_kind(tmp_path)


def test_only_a_folder_that_would_overwrite_nothing_is_new(tmp_path: Path):
    check_new(tmp_path / "none")
    check_new(tmp_path)
    write_text(tmp_path / "file", "")
    with pytest.raises(CheckpointError, match="exists and is not empty; name a new folder"):
        check_new(tmp_path)


def test_another_format_version_is_refused(tmp_path: Path):
    write_json(tmp_path / MANIFEST, {"format_version": 2})
    with pytest.raises(CheckpointError, match="format version 2; this release reads version 1"):
        read_manifest(tmp_path / MANIFEST)


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, text: str):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match="is not a manifest"):
        read_manifest(tmp_path / MANIFEST)


def test_weights_are_read_back_exactly_whatever_their_layout(tmp_path: Path):
    weights = {"a": torch.randn(3, 4).T, "b": torch.arange(3).to(torch.bfloat16), "c": nn.Parameter(torch.ones(1))}
    write_weights(tmp_path / WEIGHTS, weights)
    found = read_weights(tmp_path / WEIGHTS)
    assert found.keys() == weights.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in weights.items()
    )


def test_loaded_weights_are_those_given_not_copies(tmp_path: Path):
    write_weights(tmp_path / WEIGHTS, nn.Linear(3, 2).state_dict())
    weights, module = read_weights(tmp_path / WEIGHTS), nn.Linear(3, 2, device="meta")
    load_weights(module, weights, "here")
    assert module.weight.data_ptr() == weights["weight"].data_ptr() and module.weight.requires_grad


def test_many_differences_are_counted_and_the_first_listed():
    with pytest.raises(CheckpointError, match=r"expected \(2, 3\), found \(1,\)") as caught:
        load_weights(nn.Linear(3, 2), {"weight": torch.ones(1)} | {f"x{i}": torch.ones(1) for i in range(9)}, "here")
    assert "and 5 more" in str(caught.value)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "file.json"
    write_text(path, "old")

    def die(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(OSError, match="no space"):
        write_json(path, {"new": 1})
    assert path.read_text() == "old"


def test_json_is_for_people_too(tmp_path: Path):
    write_json(tmp_path / "a.json", {"a": [1], "b": None})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n") and len(text.splitlines()) > 3 and json.loads(text) == {"a": [1], "b": None}


def test_lists_become_tuples_at_the_top_only():
    assert tuples({"a": [1, 2], "b": {"c": [3]}, "d": 4}) == {"a": (1, 2), "b": {"c": [3]}, "d": 4}
