"""A furniture package with boxes for models, laid out like the real one."""

import zipfile
from pathlib import Path

from elastic.data.furniture import LIBRARIES, Piece

BOX = (
    "".join(f"v {x} {y} {z}\n" for x in (0, 2) for y in (0, 3) for z in (0, 1))
    + "f 1 2 4 3\nf 5 6 8 7\nf 1 2 6 5\nf 3 4 8 7\nf 1 3 7 5\nf 2 4 8 6\n"
)
"""Six faces, of no size in particular."""


def entry(**changes: str) -> dict[str, str]:
    """What a catalogue says about a chair of 50 x 100 x 40 cm."""
    chair = {"category": "Office", "width": "50", "height": "100", "depth": "40", "doorOrWindow": "false"}
    return chair | changes


def package(folder: Path, entries: dict[str, dict[str, str]], obj: str = BOX) -> Path:
    """An unpacked package whose every library has these pieces by name; the library's name is their creator's."""
    for library in LIBRARIES:
        path = folder / "usr/share/sweethome3d/furniture" / f"{library}.sh3f"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        with zipfile.ZipFile(path, "w") as archive:
            for number, (name, values) in enumerate(entries.items(), 1):
                model = f"{library}/{name}.obj"
                lines += [
                    f"{key}#{number}={value}" for key, value in ({"creator": library, "name": name} | values).items()
                ]
                lines.append(f"model#{number}=/{model}")
                archive.writestr(model, obj)
            archive.writestr("PluginFurnitureCatalog.properties", "\n".join(lines))
    return folder


def pieces(folder: Path, count: int, category: str = "Office", size_m: tuple[float, float, float] = (0.5, 1.0, 0.4)):
    """Boxes of one size in one library of their own."""
    archive = folder / f"{category}.zip"
    with zipfile.ZipFile(archive, "w") as library:
        for number in range(count):
            library.writestr(f"{category}{number}.obj", BOX)
    return [
        Piece(
            archive=archive,
            path=f"{category}{number}.obj",
            name=f"{category} {number}",
            category=category,
            size_m=size_m,
            rotation=(1, 0, 0, 0, 1, 0, 0, 0, 1),
            creator="Someone",
            license="CC0-1.0",
        )
        for number in range(count)
    ]
