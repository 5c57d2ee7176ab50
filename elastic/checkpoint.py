"""What a run leaves on disk, and how it is read back.

Two kinds, both written under a temporary name, flushed, and renamed last, so that a reader sees all or nothing:

- The *deliverable* of a run: `model.safetensors` (parameter names are timm's below `image.`), `elastic.json` (the
  `Manifest`) and, with a text tower, `tokenizer.json`. Weights are memory-mapped on loading: processes on one
  machine that load the same file share its pages.
- *Training checkpoints*: `checkpoints/step_XXXXXXXX/state.pt`, whatever the trainer needs to continue exactly.
  A damaged one is never skipped in silence: loading raises and says what to delete to continue from the one before.
"""

import os
import pickle
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from elastic.data.tokenizer import Tokenizer
from elastic.errors import CheckpointError, DataError, ElasticError
from elastic.model.config import EncoderConfig, Preprocess, TextConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.hub import TOKENIZER
from elastic.model.pretrained import BUNDLED_RUN
from elastic.model.storage import (
    FORMAT_VERSION,
    MANIFEST,
    WEIGHTS,
    check_run,
    flush,
    load_weights,
    read_manifest,
    read_weights,
    tuples,
    write_json,
    write_text,
    write_weights,
)
from elastic.submodel import Space

CHECKPOINTS = "checkpoints"

_STATE = "state.pt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """`elastic.json`: everything besides the weights that is needed to use a model."""

    encoder: EncoderConfig
    """Rebuilds the module that the weights belong to."""
    preprocess: Preprocess
    """Turns pixels into its input."""
    domains: tuple[str, ...] = ()
    """Names of the domains it was trained on."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Measured tables by kind (`latency`, `quality`): file names relative to the run directory."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: recipe, step, seed, git revision, versions, device; JSON values."""

    @property
    def space(self) -> Space:
        """What can be chosen of the image tower."""
        return self.encoder.space

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values; the space is written for readers other than `elastic`."""
        return {"format_version": FORMAT_VERSION} | asdict(self) | {"space": asdict(self.space)}

    @classmethod
    def from_json(cls, path: Path) -> "Manifest":
        """Read a manifest file.

        Raises:
            CheckpointError: not there, not JSON, of another version, or with fields this version does not know.
        """
        values = read_manifest(path)
        try:
            values.pop("space", None)
            return cls(
                encoder=_encoder_config(values.pop("encoder")),
                preprocess=Preprocess(**tuples(values.pop("preprocess"))),
                **tuples(values),
            )
        except (KeyError, TypeError, ValueError, AttributeError, ElasticError) as error:
            raise CheckpointError(str(path), f"is not a manifest ({error})", "write it again by training") from error


def resolve_run(run: Path | None) -> Path:
    """The directory of a finished image-text model: `run` itself, or the bundled one.

    Raises:
        CheckpointError: it holds none.
    """
    path = BUNDLED_RUN if run is None else run
    check_run(path, "encoder")
    return path


def save_model(run: Path, encoder: Encoder, manifest: Manifest, tokenizer: Tokenizer | None = None) -> None:
    """Write the deliverable of a run into its directory; the manifest comes last."""
    assert (encoder.text is None) == (tokenizer is None), "a text tower and its tokenizer are saved together"
    run.mkdir(parents=True, exist_ok=True)
    write_weights(run / WEIGHTS, encoder.state_dict())
    if tokenizer is not None:
        write_text(run / TOKENIZER, tokenizer.to_json())
    save_manifest(run, manifest)


def save_manifest(run: Path, manifest: Manifest) -> None:
    """Write, or replace, the manifest of a run."""
    write_json(run / MANIFEST, manifest.to_json())


def load_model(run: Path | None = None) -> tuple[Encoder, Manifest, Tokenizer | None]:
    """The encoder (in eval mode, on the CPU), manifest and tokenizer of a run; without one, the bundled run's.

    Raises:
        CheckpointError: no model there, damaged, or its weights do not fit its manifest.
    """
    path = resolve_run(run)
    manifest = Manifest.from_json(path / MANIFEST)
    with torch.device("meta"):
        encoder = Encoder(manifest.encoder)
    load_weights(encoder, read_weights(path / WEIGHTS), str(path / WEIGHTS))
    return encoder.eval(), manifest, None if encoder.text is None else _load_tokenizer(path / TOKENIZER)


def save_checkpoint(run: Path, state: Mapping[str, Any], step: int, keep_last: int) -> Path:
    """Write a training checkpoint, then delete all but the newest `keep_last`.

    `state` holds tensors and plain Python values only. An existing checkpoint of the same step is replaced.
    """
    assert keep_last >= 1
    folder = run / CHECKPOINTS
    temporary = folder / f".step_{step:08d}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    torch.save(dict(state), temporary / _STATE)
    flush(temporary / _STATE)
    flush(temporary)
    final = folder / f"step_{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    flush(folder)
    for old in list_checkpoints(run)[:-keep_last]:
        shutil.rmtree(old)
    return final


def list_checkpoints(run: Path) -> list[Path]:
    """The complete training checkpoints of a run, oldest first."""
    return sorted((run / CHECKPOINTS).glob("step_*"))


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete training checkpoint of a run, if it has one."""
    return next(reversed(list_checkpoints(run)), None)


def latest_step(run: Path) -> int:
    """The step of that checkpoint; 0 without one."""
    newest = latest_checkpoint(run)
    return 0 if newest is None else int(newest.name.removeprefix("step_"))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` was given, its tensors on the CPU.

    Raises:
        CheckpointError: not there or damaged.
    """
    try:
        with ZipFile(path / _STATE) as archive:  # torch.load does not compare checksums
            if (wrong := archive.testzip()) is not None:
                raise BadZipFile(f"checksum of {wrong} differs")
        return torch.load(path / _STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, BadZipFile) as error:
        advice = f"delete {path} to continue from the checkpoint before it"
        raise CheckpointError(str(path), f"is missing or damaged ({error})", advice) from error


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.load(path)
    except DataError as error:
        raise CheckpointError(error.source, error.problem, error.advice) from error


def _encoder_config(values: dict[str, Any]) -> EncoderConfig:
    vision, text = VisionConfig(**values.pop("vision")), values.pop("text")
    return EncoderConfig(vision=vision, text=None if text is None else TextConfig(**text), **tuples(values))
