"""Where a location points: a local path or a URL, as one pyarrow file system and a path on it."""

import os
from pathlib import Path

import fsspec
import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, FSSpecHandler, LocalFileSystem, PyFileSystem

from elastic.errors import DataError

_NATIVE_SCHEMES = ("s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss", "file")
"""What pyarrow reads itself; every other scheme goes to fsspec, which may need a package for it."""


def cache_dir() -> Path:
    """Where what is fetched, built or measured for this user lies: `$XDG_CACHE_HOME/elastic`, or `~/.cache/elastic`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "elastic"


def locate(location: str) -> tuple[FileSystem, str, FileInfo]:
    """The file system, the path on it and what is there.

    Raises:
        DataError: nothing is there, the scheme is unknown, or the storage refuses.
    """
    try:
        filesystem, path = _resolve(location)
        info = filesystem.get_file_info(path)
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise DataError(location, f"cannot be reached ({error})", "check the address and your access to it") from error
    if info.type == FileType.NotFound:
        raise DataError(location, "does not exist", "check the path; `icons` and `scenes` need none")
    return filesystem, path, info


def list_files(filesystem: FileSystem, folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Paths below a folder that end in one of `suffixes`, sorted, hidden ones left out."""
    infos = filesystem.get_file_info(FileSelector(folder, recursive=True))
    return sorted(
        info.path
        for info in infos
        if info.type == FileType.File and info.path.endswith(suffixes) and not info.base_name.startswith((".", "_"))
    )


def _resolve(location: str) -> tuple[FileSystem, str]:
    scheme, separator, _ = location.partition("://")
    if not separator:
        return LocalFileSystem(), location
    if scheme in _NATIVE_SCHEMES:
        return FileSystem.from_uri(location)
    remote, path = fsspec.url_to_fs(location)
    return PyFileSystem(FSSpecHandler(remote)), path
