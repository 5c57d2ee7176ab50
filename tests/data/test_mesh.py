import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elastic.data.mesh import TEXTURE_SIZE, Material, join, load_obj, rectangle
from elastic.errors import DataError

SQUARE = """
# a unit square of two materials
mtllib square.mtl
v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl red wood
f 1/1 2/2 3/3
usemtl none
f 1//1 3//1 4//1
"""


def save(folder: Path, obj: str, mtl: str | None = None) -> Path:
    (folder / "square.obj").write_text(obj)
    if mtl is not None:
        (folder / "square.mtl").write_text(mtl)
    return folder


def test_faces_name_positions_and_texture_coordinates(tmp_path: Path):
    mesh = load_obj(save(tmp_path, SQUARE), "square.obj")
    assert mesh.corners.tolist() == [[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]]
    assert mesh.uv.tolist() == [[[0, 0], [1, 0], [1, 1]], [[0, 0], [0, 0], [0, 0]]]


def test_materials_give_colour_and_opacity_and_unknown_ones_are_grey(tmp_path: Path):
    mtl = "newmtl red wood\nKd 1 0.5 0\nd 0.25\nNs 10\n"
    mesh = load_obj(save(tmp_path, SQUARE, mtl), "square.obj")
    first, second = (mesh.materials[place] for place in mesh.material_of)
    assert (first.color, first.opacity, first.texture) == ((1, 0.5, 0), 0.25, None)
    assert (second.color, second.opacity) == (Material().color, 1)


def test_a_texture_is_read_with_its_alpha_and_reduced(tmp_path: Path):
    Image.new("RGBA", (4 * TEXTURE_SIZE, TEXTURE_SIZE), (10, 20, 30, 40)).save(tmp_path / "my wood.png")
    mesh = load_obj(save(tmp_path, SQUARE, "newmtl red wood\nmap_Kd my wood.png\n"), "square.obj")
    texture = mesh.materials[mesh.material_of[0]].texture
    assert texture is not None
    assert texture.shape == (TEXTURE_SIZE // 4, TEXTURE_SIZE, 4)
    assert np.abs(texture - [10.0, 20, 30, 40]).max() <= 3


def test_a_texture_that_was_not_published_leaves_the_colour(tmp_path: Path):
    mtl = "newmtl red wood\nKd 1 0 0\nmap_Kd C:/Users/me/wood.jpg\n"
    mesh = load_obj(save(tmp_path, SQUARE, mtl), "square.obj")
    assert mesh.materials[0].texture is None
    assert mesh.materials[0].color == (1, 0, 0)


def test_a_model_inside_a_zip_file_reads_like_one_in_a_folder(tmp_path: Path):
    save(tmp_path, SQUARE, "newmtl red wood\nKd 1 0 0\n")
    with zipfile.ZipFile(tmp_path / "library.zip", "w") as library:
        for name in ("square.obj", "square.mtl"):
            library.write(tmp_path / name, f"models/{name}")
    mesh = load_obj(zipfile.Path(tmp_path / "library.zip"), "models/square.obj")
    assert np.array_equal(mesh.corners, load_obj(tmp_path, "square.obj").corners)
    assert mesh.materials[0].color == (1, 0, 0)


def test_negative_numbers_count_back_from_the_vertices_so_far(tmp_path: Path):
    obj = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 9 9 9\n"
    assert load_obj(save(tmp_path, obj), "square.obj").corners.tolist() == [[[0, 0, 0], [1, 0, 0], [0, 1, 0]]]


def test_a_polygon_becomes_a_fan_of_the_same_area(tmp_path: Path):
    angles = 2 * np.pi * np.arange(6) / 6
    obj = "".join(f"v {np.cos(angle)} {np.sin(angle)} 0\n" for angle in angles) + "f 1 2 3 4 5 6\n"
    corners = load_obj(save(tmp_path, obj), "square.obj").corners
    areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1) / 2
    assert len(areas) == 4
    assert areas.sum() == pytest.approx(3 * np.sqrt(3) / 2)


@pytest.mark.parametrize("line", ["v 1 2 x", "f 1 2 three", "f 0 1 2", "f -9 1 2", "f"])
def test_a_line_that_cannot_be_understood_is_named(tmp_path: Path, line: str):
    with pytest.raises(DataError, match=f"line 4 is '{line}'"):
        load_obj(save(tmp_path, f"v 0 0 0\nv 1 0 0\nv 0 1 0\n{line}\n"), "square.obj")


def test_a_face_beyond_the_last_vertex_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="names a vertex that is not there"):
        load_obj(save(tmp_path, "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 4\n"), "square.obj")


def test_a_file_without_faces_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="holds no faces"):
        load_obj(save(tmp_path, "v 0 0 0\n"), "square.obj")


def test_a_fitted_mesh_fills_its_box_and_stands_on_the_origin():
    mesh = rectangle((3, 2, 1), (5, 0, 0), (0, 1, 4), Material()).fitted(0.6, 1.8, 0.4)
    points = mesh.corners.reshape(-1, 3)
    assert points.min(0) == pytest.approx([-0.3, 0, -0.2], abs=1e-6)
    assert points.max(0) == pytest.approx([0.3, 1.8, 0.2], abs=1e-6)


def test_a_flat_mesh_stays_flat():
    mesh = rectangle((0, 0, 7), (5, 0, 0), (0, 1, 0), Material()).fitted(2, 1, 0.1)
    assert mesh.corners[..., 2] == pytest.approx(0)
    assert mesh.corners[..., 0].max() == pytest.approx(1)


def test_points_are_turned_then_moved():
    quarter = np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    mesh = rectangle((0, 0, 1), (0, 1, 0), (1, 0, 0), Material()).transformed(quarter, np.array([10.0, 0, 0]))
    # +z becomes +x, +x becomes -z.
    assert mesh.corners.reshape(-1, 3).min(0).tolist() == [11, 0, -1]
    assert mesh.corners.reshape(-1, 3).max(0).tolist() == [11, 1, 0]


def area(corners: np.ndarray) -> float:
    return float(
        np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=-1).sum() / 2
    )


def test_a_rectangle_has_its_area_and_a_texture_for_every_metre():
    mesh = rectangle((1, 1, 1), (2.5, 0, 0), (0, 0, 1.2), Material())
    assert area(mesh.corners) == pytest.approx(3.0)
    assert mesh.uv.max((0, 1)) == pytest.approx([2.5, 1.2])


def test_quarters_cover_the_same_surface_with_the_same_texture():
    mesh = rectangle((1, 1, 1), (2.5, 0, 0), (0, 0, 1.2), Material())
    fine = mesh.quartered(np.array([False, True]))
    assert len(fine.corners) == len(fine.material_of) == 5
    assert [area(fine.corners[place : place + 1]) for place in range(5)] == pytest.approx([1.5] + [1.5 / 4] * 4)
    # Texture coordinates follow positions through the cut.
    assert fine.uv == pytest.approx(fine.corners[..., [0, 2]] - 1)


def test_joined_meshes_keep_their_materials():
    red, blue = Material(color=(1, 0, 0)), Material(color=(0, 0, 1))
    parts = [rectangle((0, 0, place), (1, 0, 0), (0, 1, 0), look) for place, look in enumerate((red, blue, red))]
    mesh = join(parts)
    assert [mesh.materials[place].color for place in mesh.material_of[::2]] == [(1, 0, 0), (0, 0, 1), (1, 0, 0)]
    assert mesh.corners[::2, 0, 2].tolist() == [0, 1, 2]
