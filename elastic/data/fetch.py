"""Fetches what data sets are built from and the package may not carry: pinned, checksummed, cached.

The sources are Debian packages, because a distribution keeps old versions and states their licences. `apt-get
download` needs no root and installs nothing; the archive is unpacked here, so `dpkg` is not needed.
"""

import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from elastic.data.filesystem import cache_dir
from elastic.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class DebianPackage:
    """One version of one Debian package, which is one file."""

    name: str
    version: str
    sha256: str
    """Of the `.deb` file."""
    size_mb: float
    """What is downloaded."""
    license: str
    """Of what the package holds, in short."""


PACKAGES = {
    "furniture": DebianPackage(
        name="sweethome3d-furniture",
        version="1.8-1",
        sha256="3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
        size_mb=119.8,
        license="CC0 and CC-BY 3.0, by model",
    )
}
"""What can be fetched, by the name that `elastic data fetch` takes."""

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60


def fetch(name: str) -> Path:
    """The folder with the unpacked package, which is downloaded if it is not there yet.

    Raises:
        DataError: `apt-get` is missing or fails, or the file is not the pinned one.
    """
    package = PACKAGES[name]
    folder = _folder(package)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside its place and renamed last: a folder of that name is always complete.
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive = _download(package, Path(scratch))
        _check_digest(archive, package)
        unpack_deb(archive, Path(scratch) / "unpacked")
        (Path(scratch) / "unpacked").rename(folder)
    return folder


def fetched(name: str) -> Path:
    """The folder that `fetch` made.

    Raises:
        DataError: it was never fetched.
    """
    folder = _folder(PACKAGES[name])
    if not folder.exists():
        raise DataError(name, f"is not in {folder.parent}", f"run `elastic data fetch {name}`")
    return folder


def unpack_deb(archive: Path, target: Path) -> None:
    """Extract the files of a Debian package below a folder.

    Raises:
        DataError: not a Debian package, or one with a compression that Python does not read.
    """
    with archive.open("rb") as file:
        for name, content in _ar_members(file, archive):
            if name.startswith("data.tar"):
                try:
                    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                        tar.extractall(target, filter="data")
                except tarfile.TarError as error:
                    raise DataError(str(archive), f"{name} cannot be read ({error})", "fetch it again") from error
                return
    raise DataError(str(archive), "holds no data.tar", "check that it is a Debian package")


def _ar_members(file: BinaryIO, archive: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every member of an `ar` archive, which is what a .deb file is."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise DataError(str(archive), "is not an ar archive", "check that it is a Debian package")
    while header := file.read(_AR_HEADER_BYTES):
        size = int(header[48:58])
        yield header[:16].decode("ascii").rstrip(" /"), file.read(size)
        file.seek(size % 2, os.SEEK_CUR)


def _folder(package: DebianPackage) -> Path:
    return cache_dir() / "fetched" / f"{package.name}_{package.version}"


def _download(package: DebianPackage, target: Path) -> Path:
    wanted = f"{package.name}={package.version}"
    try:
        subprocess.run(["apt-get", "download", wanted], cwd=target, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        advice = f"fetch on Debian or Ubuntu and copy {_folder(package)} here"
        raise DataError(wanted, "apt-get is not installed", advice) from error
    except subprocess.CalledProcessError as error:
        problem = f"apt-get download failed: {error.stderr.strip()[-300:]}"
        raise DataError(wanted, problem, "run `apt-get update`, or check the network") from error
    (archive,) = target.glob("*.deb")
    return archive


def _check_digest(archive: Path, package: DebianPackage) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        problem = f"has the SHA-256 {found}, wanted {package.sha256}"
        raise DataError(archive.name, problem, "the package archive was changed or damaged; do not use it")
