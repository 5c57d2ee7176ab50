"""What a server is to serve: numbered private copies of runs, and one file that names the copy that counts.

The weights in memory are a map of their file, so a run that is trained again, or copied over, while it is served
would change or kill the processes that serve it. A server therefore copies a run before it serves it. Replicas read
the file when they start and follow it afterwards, so one that starts later serves what was deployed last.
"""

import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from elastic.errors import CheckpointError
from elastic.model.hub import TOKENIZER
from elastic.model.storage import MANIFEST, WEIGHTS, run_kind
from elastic.profile.store import LATENCY, QUALITY, SCORES, latency_path

PUBLISHED = "published.json"


@dataclass(frozen=True, slots=True)
class Release:
    """A private copy of a run."""

    number: int
    """Counts the copies of one server, from 1."""
    run: Path
    """A run directory with the name of the original, its tables inside."""


class Releases:
    """The copies in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count(1)

    def copy(self, run: Path) -> Release:
        """A copy of what serving needs of a run; nothing serves it yet.

        Raises:
            CheckpointError: no model there, or the copy does not fit on the disk.
        """
        run_kind(run)
        number = next(self._numbers)
        release = Release(number, self.folder / str(number) / run.resolve().name)
        measured = latency_path(run)
        paths = [run / name for name in (WEIGHTS, MANIFEST, TOKENIZER, QUALITY, SCORES)]
        try:
            release.run.mkdir(parents=True)
            for path in [*paths, measured if measured.is_file() else run / LATENCY]:
                if path.is_file():
                    shutil.copyfile(path, release.run / path.name)
        except OSError as error:
            self.remove(release)
            advice = "make room there, or set TMPDIR to another folder before `elastic serve`"
            raise CheckpointError(str(run), f"cannot be copied to {self.folder} ({error})", advice) from error
        return release

    def publish(self, release: Release) -> None:
        """Name it as the one to serve."""
        temporary = self.folder / f".{PUBLISHED}.tmp"
        temporary.write_text(json.dumps({"number": release.number, "run": str(release.run)}), encoding="utf-8")
        os.replace(temporary, self.folder / PUBLISHED)

    def published(self) -> Release:
        """The one to serve."""
        values = json.loads((self.folder / PUBLISHED).read_text(encoding="utf-8"))
        return Release(values["number"], Path(values["run"]))

    def remove(self, release: Release) -> None:
        """Delete a copy; a process that still maps its weights keeps them."""
        shutil.rmtree(release.run.parent, ignore_errors=True)
