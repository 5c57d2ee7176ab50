import zipfile
from pathlib import Path

import numpy as np
import pytest

from elastic.data.furniture import (
    CATEGORIES,
    LIBRARIES,
    Piece,
    load_piece,
    parse_properties,
    read_catalog,
    split_pieces,
    stands_in_rooms,
)
from elastic.errors import DataError

from .models import BOX, entry, package, pieces


def test_a_catalogue_is_latin_1_with_java_escapes():
    found = parse_properties(b"# notes\nid=all\nname#1=H\xf4tel lamp \nwidth#2 = 10\nname#2=20\\u20ac: a=b\n")
    assert found == {1: {"name": "H\xf4tel lamp"}, 2: {"width": "10", "name": "20\u20ac: a=b"}}


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"category": "Vehicles"}, False),
        ({"doorOrWindow": "true"}, False),
        ({"elevation": "180"}, False),
        ({"width": "600"}, False),
        ({"width": "10", "depth": "10", "height": "30"}, False),
        ({"height": "2"}, False),
    ],
)
def test_only_floor_standing_indoor_furniture_of_fitting_size_is_taken(changes: dict[str, str], fits: bool):
    assert stands_in_rooms(entry(**changes)) == fits


def test_the_catalogue_of_every_library_is_read_with_sizes_and_credits(tmp_path: Path):
    found = read_catalog(package(tmp_path, {"Chair": entry(), "Truck": entry(category="Vehicles")}))
    assert [piece.name for piece in found] == ["Chair"] * len(LIBRARIES)
    assert {piece.license for piece in found} == set(LIBRARIES.values())
    assert found[0].size_m == (0.5, 1.0, 0.4)
    assert {piece.credit for piece in found} == {f"Chair by {name}, {spdx}" for name, spdx in LIBRARIES.items()}


def test_a_damaged_package_is_named(tmp_path: Path):
    folder = package(tmp_path, {"Chair": entry()})
    (folder / "usr/share/sweethome3d/furniture/Scopia.sh3f").write_bytes(b"no zip file")
    with pytest.raises(DataError, match=r"Scopia.sh3f has no readable PluginFurnitureCatalog.properties"):
        read_catalog(folder)


def test_a_piece_is_loaded_at_its_real_size(tmp_path: Path):
    piece = read_catalog(package(tmp_path, {"Chair": entry()}))[0]
    points = load_piece(piece).corners.reshape(-1, 3)
    assert points.min(0) == pytest.approx([-0.25, 0, -0.2])
    assert points.max(0) == pytest.approx([0.25, 1, 0.2])


def test_a_rotation_turns_the_file_before_it_is_fitted(tmp_path: Path):
    # The file's +z is up, as some modelling programs have it.
    lying = entry(modelRotation="1 0 0 0 0 1 0 -1 0")
    piece = read_catalog(package(tmp_path, {"Chair": lying}, obj="v 0 0 0\nv 2 0 9\nv 0 0 9\nf 1 2 3\n"))[0]
    corners = load_piece(piece).corners[0]
    assert corners == pytest.approx(np.array([[-0.25, 0, 0], [0.25, 1, 0], [-0.25, 1, 0]]))


def test_a_broken_model_is_named(tmp_path: Path):
    piece = read_catalog(package(tmp_path, {"Chair": entry()}, obj=BOX + "f 1 2 x\n"))[0]
    with pytest.raises(DataError, match=r"Chair.obj: line \d+ is 'f 1 2 x'"):
        load_piece(piece)


def test_splits_share_no_piece_and_divide_every_category(tmp_path: Path):
    everything = [piece for category in CATEGORIES for piece in pieces(tmp_path, 20, category)]
    parts = split_pieces(everything)
    assert sorted(piece.path for part in parts.values() for piece in part) == sorted(piece.path for piece in everything)
    for category in CATEGORIES:
        counts = [sum(piece.category == category for piece in parts[split]) for split in ("train", "val", "test")]
        assert counts == [14, 2, 4]


def test_a_split_does_not_depend_on_the_order_of_the_catalogue(tmp_path: Path):
    some = pieces(tmp_path, 20, "Office")

    def names(parts: dict[str, list[Piece]]) -> dict[str, list[str]]:
        return {split: [piece.name for piece in part] for split, part in parts.items()}

    assert names(split_pieces(some)) == names(split_pieces(some[::-1]))


def test_a_library_without_a_catalogue_is_named(tmp_path: Path):
    folder = package(tmp_path, {"Chair": entry()})
    with zipfile.ZipFile(folder / "usr/share/sweethome3d/furniture/Reallusion.sh3f", "w") as library:
        library.writestr("readme", "")
    with pytest.raises(DataError, match="remove the folder and fetch it again"):
        read_catalog(folder)
