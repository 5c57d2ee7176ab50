"""Opens a data set from its location, whatever kind of files lie there."""

from pyarrow.fs import FileSystem, FileType

from elastic.data.build_rooms import cached_rooms
from elastic.data.build_scenes import cached_scenes
from elastic.data.filesystem import list_files, locate
from elastic.data.folder import METADATA_FILES, open_folder
from elastic.data.icons import BUNDLED_ICONS
from elastic.data.parquet import open_parquet
from elastic.data.source import ImageStore, Source
from elastic.data.tars import open_tars
from elastic.errors import DataError

__all__ = ["ImageStore", "Source", "open_source"]

_PARQUET, _TAR = (".parquet",), (".tar",)


def open_source(location: str) -> Source:
    """The data set at a location: a name, or a path or URL of one of these.

    Names are `icons` (bundled), `scenes` (built in the cache at first use) and `rooms` (in the cache once built).

    - a Parquet file, or a folder of them, with the columns of `schema.ROW`;
    - a folder with `metadata.csv` or `metadata.jsonl`, whose `file_name` names images below the folder;
    - a WebDataset tar, or a folder of them.

    Raises:
        DataError: nothing there, nothing readable, a missing column, or no rows.
    """
    known = {"icons": lambda: BUNDLED_ICONS, "scenes": cached_scenes, "rooms": cached_rooms}
    filesystem, path, info = locate(str(known[location]()) if location in known else location)
    if info.type == FileType.Directory:
        source = _open_directory(location, filesystem, path)
    elif path.endswith(_PARQUET):
        source = open_parquet(location, filesystem, [path])
    elif path.endswith(_TAR):
        source = open_tars(location, filesystem, [path])
    else:
        raise DataError(location, "is a file of an unknown kind", "give a .parquet or .tar file, or a folder")
    if len(source) == 0:
        raise DataError(location, "holds no rows", "check that the right files are there")
    return source


def _open_directory(location: str, filesystem: FileSystem, path: str) -> Source:
    for name in METADATA_FILES:
        file = f"{path.rstrip('/')}/{name}"
        if filesystem.get_file_info(file).type == FileType.File:
            return open_folder(location, filesystem, path, file)
    if files := list_files(filesystem, path, _PARQUET):
        return open_parquet(location, filesystem, files)
    if files := list_files(filesystem, path, _TAR):
        return open_tars(location, filesystem, files)
    problem = "the folder holds no Parquet files, no tars and no metadata file"
    raise DataError(location, problem, f"add {' or '.join(METADATA_FILES)} with a column file_name")
