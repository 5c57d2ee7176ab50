"""What every run has on disk: weights, read without a copy, and files that a reader sees whole or not at all.

Everything is written under a temporary name, flushed, and renamed last. Weights are safetensors files, memory-mapped
on reading: processes on one machine that read the same file share its pages. `elastic.json` names what they are the
weights of, in a field `encoder` or `decoder`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from elastic.errors import CheckpointError

FORMAT_VERSION = 1
"""Of `elastic.json`; another version is refused."""

WEIGHTS, MANIFEST = "model.safetensors", "elastic.json"

Kind = Literal["encoder", "decoder"]
"""What a run holds, and the manifest's field that describes it."""

_HOLDS: dict[Kind, str] = {"encoder": "an image-text encoder", "decoder": "a language model"}
_MAX_DIFFERENCES = 6


def run_kind(run: Path) -> Kind:
    """What a run holds.

    Raises:
        CheckpointError: no finished model.
    """
    missing = [name for name in (WEIGHTS, MANIFEST) if not (run / name).is_file()]
    if missing:
        advice = "name a run directory, or train one with `elastic train`"
        raise CheckpointError(str(run), f"holds no finished model: {' and '.join(missing)} missing", advice)
    return "decoder" if "decoder" in read_manifest(run / MANIFEST) else "encoder"


def check_run(run: Path, kind: Kind) -> None:
    """Accept the directory of a finished model of this kind.

    Raises:
        CheckpointError: it holds no model, or one of the other kind.
    """
    if (found := run_kind(run)) != kind:
        raise CheckpointError(str(run), f"holds {_HOLDS[found]}", f"this needs {_HOLDS[kind]}: name another run")


def check_new(folder: Path) -> None:
    """Accept a folder that would overwrite nothing.

    Raises:
        CheckpointError: it exists and is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(str(folder), "exists and is not empty", "name a new folder")


def read_manifest(path: Path) -> dict[str, Any]:
    """The values of a manifest file, without its version.

    Raises:
        CheckpointError: not there, not JSON, or of another version.
    """
    if not path.is_file():
        raise CheckpointError(str(path), "no such file", "name a run directory that holds a finished model")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format_version", None)
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(str(path), f"is not a manifest ({error})", "write it again by training") from error
    if version != FORMAT_VERSION:
        advice = f"this release reads version {FORMAT_VERSION}; use the release that wrote it"
        raise CheckpointError(str(path), f"format version {version}", advice)
    return values


def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest's values with tuples for lists, as the fields of our dataclasses have them."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a safetensors file, memory-mapped.

    Raises:
        CheckpointError: not there or damaged.
    """
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(str(path), f"cannot be read ({error})", "restore or train the model again") from error


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Make `weights` the parameters of `module`, without a copy.

    Raises:
        CheckpointError: names or shapes differ; the message lists the differences.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    differences = [
        f"{name}: expected {expected.get(name, 'nothing')}, found {found.get(name, 'nothing')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if differences:
        shown = "; ".join(differences[:_MAX_DIFFERENCES])
        more = len(differences) - _MAX_DIFFERENCES
        problem = f"weights do not fit the model ({shown}{f'; and {more} more' if more > 0 else ''})"
        raise CheckpointError(where, problem, "use the configuration that it was trained with")
    module.load_state_dict(weights, assign=True)


def write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write, or replace, a safetensors file. No two tensors may share memory."""
    temporary = _temporary(path)
    state = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
    safetensors.torch.save_file(state, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors makes it readable by its owner alone
    _publish(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write, or replace, a text file."""
    temporary = _temporary(path)
    temporary.write_text(text, encoding="utf-8")
    _publish(temporary, path)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write, or replace, a JSON file for people and programs."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _publish(temporary: Path, final: Path) -> None:
    flush(temporary)
    os.replace(temporary, final)
    flush(final.parent)
