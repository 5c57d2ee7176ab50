"""Where the measured tables of a run lie, and how they are found again.

A run keeps its tables beside its weights. The model inside the package cannot: the package may be read-only, and its
latency differs on every machine. Its latency table goes to the user's cache directory, named after its manifest.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

from elastic.checkpoint import MANIFEST, Manifest, save_manifest
from elastic.data.filesystem import cache_dir
from elastic.profile.provenance import Device
from elastic.profile.tables import LatencyTable, QualityTable

LATENCY, QUALITY = "latency.parquet", "quality.parquet"
SCORES = "scores.json"
"""What `elastic evaluate` writes of a language model, where an encoder has its quality table."""

_PACKAGE_DIR = Path(__file__).resolve().parents[1]


def inside_package(run: Path) -> bool:
    """Whether a run is part of the package, and so not to be written to."""
    return run.resolve().is_relative_to(_PACKAGE_DIR)


def latency_path(run: Path) -> Path:
    """Where `elastic profile` writes the latency table of a run."""
    if not inside_package(run):
        return run / LATENCY
    digest = hashlib.sha256((run / MANIFEST).read_bytes()).hexdigest()[:12]
    return cache_dir() / f"{run.name}-{digest}" / LATENCY


def record_table(run: Path, path: Path) -> None:
    """Name a table in the manifest of its run; one that was written elsewhere stays unnamed."""
    if path.parent.resolve() == run.resolve():
        manifest = Manifest.from_json(run / MANIFEST)
        save_manifest(run, replace(manifest, tables={**manifest.tables, path.stem: path.name}))


def load_latency(run: Path, here: Device, *, any_device: bool = False) -> LatencyTable:
    """The latency table of a run, measured on this device.

    The cached table of the model inside the package comes before the one that was shipped with it.

    Args:
        run: a run directory.
        here: this device.
        any_device: accept a table of another device too.

    Raises:
        ProfileError: never profiled, or only on other devices.
    """
    measured = latency_path(run)
    table = LatencyTable.load(measured if measured.is_file() else run / LATENCY)
    table.require_device(here, force=any_device)
    return table


def load_quality(run: Path) -> QualityTable:
    """The quality table of a run.

    Raises:
        ProfileError: never evaluated.
    """
    return QualityTable.load(run / QUALITY)
