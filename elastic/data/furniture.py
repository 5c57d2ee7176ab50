"""The catalogue of 3D models in the Debian package `sweethome3d-furniture`: what is there, how large, by whom.

Each library is a zip file (`.sh3f`) with a `PluginFurnitureCatalog.properties` that lists OBJ models with their name,
category and size in centimetres. The models are CC0 or CC-BY 3.0, so every one is kept with its author.
"""

import functools
import hashlib
import re
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from elastic.data.mesh import Mesh, load_obj
from elastic.data.schema import SPLITS
from elastic.errors import DataError

LIBRARIES = {
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
    "Reallusion": "CC-BY-3.0-US",
    "Scopia": "CC-BY-3.0",
}
"""Libraries of the package and their licences (SPDX)."""

CATEGORIES = ("Bathroom", "Bedroom", "Characters", "Kitchen", "Lights", "Living room", "Miscellaneous", "Office")
"""Categories of what stands in rooms. The catalogue's others are for gardens, streets and walls."""

MIN_EXTENT_M, MAX_EXTENT_M, MIN_HEIGHT_M = 0.35, 2.4, 0.2
"""The longest side of a piece lies between the first two: no forks, no sheds. Carpets are lower than the last."""

_CATALOG = "PluginFurnitureCatalog.properties"
_LIBRARY_PATH = Path("usr/share/sweethome3d/furniture")
_PROPERTY = re.compile(r"(\w+)#(\d+)\s*=(.*)")
_SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One model of the catalogue."""

    archive: Path
    """The library's zip file."""
    path: str
    """The OBJ file within it."""
    name: str
    category: str
    size_m: tuple[float, float, float]
    """Width (x), height (y) and depth (z); its front faces +z."""
    rotation: tuple[float, ...]
    """Row-major matrix that turns the file's axes to these."""
    creator: str
    license: str

    @property
    def credit(self) -> str:
        """What the licence asks to be stated."""
        return f"{self.name} by {self.creator}, {self.license}"


@functools.lru_cache(maxsize=128)
def load_piece(piece: Piece) -> Mesh:
    """The model at its real size, standing on the origin. Kept, at about 1 MB each: rooms share pieces.

    Raises:
        DataError: its file is damaged.
    """
    mesh = load_obj(zipfile.Path(piece.archive), piece.path)
    width, height, depth = piece.size_m
    rotation = np.array(piece.rotation, np.float64).reshape(3, 3)
    return mesh.transformed(rotation, np.zeros(3)).fitted(width, height, depth)


def read_catalog(folder: Path) -> list[Piece]:
    """Every piece of the unpacked package that can stand on the floor of a room, sorted by path.

    Raises:
        DataError: a library or its catalogue is missing.
    """
    pieces: list[Piece] = []
    for library, license_ in LIBRARIES.items():
        archive = folder / _LIBRARY_PATH / f"{library}.sh3f"
        try:
            catalog = (zipfile.Path(archive) / _CATALOG).read_bytes()
        except (FileNotFoundError, zipfile.BadZipFile, KeyError) as error:
            problem = f"{archive} has no readable {_CATALOG}"
            raise DataError("furniture", problem, "remove the folder and fetch it again") from error
        entries = parse_properties(catalog).values()
        pieces += [_piece(entry, archive, license_) for entry in entries if stands_in_rooms(entry)]
    return sorted(pieces, key=lambda piece: piece.path)


def parse_properties(catalog: bytes) -> dict[int, dict[str, str]]:
    r"""The numbered entries of a Java properties file: Latin-1 with `\uXXXX` for the rest."""
    entries: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for line in catalog.splitlines():
        if match := _PROPERTY.match(line.decode("unicode_escape")):
            key, number, value = match.groups()
            entries[int(number)][key] = value.strip()
    return dict(entries)


def stands_in_rooms(entry: dict[str, str]) -> bool:
    """Whether it is indoor furniture of a fitting size that stands on the floor, not on a wall, table or ceiling."""
    width, height, depth = _size_m(entry)
    longest = max(width, height, depth)
    on_the_floor = "elevation" not in entry and entry["doorOrWindow"] == "false"
    fits = MIN_EXTENT_M <= longest <= MAX_EXTENT_M and height >= MIN_HEIGHT_M
    return entry["category"] in CATEGORIES and on_the_floor and fits


def split_pieces(pieces: Sequence[Piece]) -> dict[str, list[Piece]]:
    """Disjoint pieces for train, val and test: 70, 10 and 20 % of every category, by hash of the path."""
    parts: dict[str, list[Piece]] = {split: [] for split in SPLITS}
    for category in CATEGORIES:
        members = [piece for piece in pieces if piece.category == category]
        members.sort(key=lambda piece: hashlib.sha1(piece.path.encode()).hexdigest())
        start = 0.0
        for split, share in _SHARES.items():
            end = start + share * len(members)
            parts[split] += members[round(start) : round(end)]
            start = end
    return parts


def _piece(entry: dict[str, str], archive: Path, license_: str) -> Piece:
    rotation = entry.get("modelRotation", "1 0 0 0 1 0 0 0 1")
    return Piece(
        archive=archive,
        path=entry["model"].lstrip("/"),
        name=entry["name"],
        category=entry["category"],
        size_m=_size_m(entry),
        rotation=tuple(float(word) for word in rotation.split()),
        creator=entry["creator"],
        license=license_,
    )


def _size_m(entry: dict[str, str]) -> tuple[float, float, float]:
    return float(entry["width"]) / 100, float(entry["height"]) / 100, float(entry["depth"]) / 100
