from pathlib import Path

import huggingface_hub
import pytest

from elastic.errors import CheckpointError
from elastic.model.hub import download, read_tokenizer


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_a_missing_tokenizer_is_refused_with_how_to_write_one(tmp_path: Path):
    with pytest.raises(CheckpointError, match="does not exist; write it with transformers"):
        read_tokenizer(tmp_path / "tokenizer.json")


def test_a_hub_that_cannot_be_reached_is_one_message(monkeypatch: pytest.MonkeyPatch):
    def unreachable(repo_id: str, allow_patterns: list[str]) -> str:
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(CheckpointError, match=r"^a/b: is no local path, .* did not deliver it \(no route\); check"):
        download("a/b", ["*"])
