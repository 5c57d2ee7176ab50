import math
from dataclasses import replace

import numpy as np
import pytest

from elastic.data.mesh import Material, Mesh, rectangle
from elastic.data.render import AMBIENT, BACKGROUND, SAMPLES_PER_PIXEL, Camera, Picture, render, sample
from elastic.errors import ConfigError

RED, BLUE = Material(color=(1, 0, 0)), Material(color=(0, 0, 1))
TOWARDS_CAMERA = (0.0, 0.0, 1.0)


def camera(size: int = 32, **changes: object) -> Camera:
    """At the origin, looking along -z: x is to the right. At distance d the picture is 2 d wide."""
    return Camera(**{"eye": (0, 0, 0), "target": (0, 0, -1), "field_of_view": 90, "size": size} | changes)


def facing(distance: float, side: float = 1.0, x: float = 0.0, material: Material = RED) -> Mesh:
    """A square that faces the camera, with its middle at (x, 0)."""
    corner = (x - side / 2, -side / 2, -distance)
    return rectangle(corner, (side, 0, 0), (0, side, 0), material)


def draw(*scene: tuple[Mesh, int], view: Camera | None = None, light: tuple[float, float, float] = TOWARDS_CAMERA):
    return render(scene, view or camera(), light, np.random.default_rng(0))


def test_a_facing_square_has_its_distance_at_every_pixel_and_its_projected_size():
    picture = draw((facing(distance=2.0), 1))
    seen = picture.depth > 0
    # One metre at distance two is a quarter of the picture's width; the patches of points add half a pixel at most.
    assert seen.sum() == pytest.approx((32 / 4) ** 2, rel=0.3)
    assert seen[12:20, 12:20].all()
    assert picture.depth[seen] == pytest.approx(2.0)
    assert (picture.instances == seen).all()


def test_depth_is_along_the_axis_not_along_the_ray():
    picture = draw((facing(distance=3.0, side=20), 1))
    assert picture.depth == pytest.approx(np.full((32, 32), 3.0))


def test_a_tilted_plane_has_the_depth_of_each_pixels_own_ray():
    # The floor one metre below: a ray that falls v per metre meets it at depth 1 / v.
    floor = rectangle((-30, -1, -30), (60, 0, 0), (0, 0, 30), RED)
    picture = draw((floor, 1))
    fall = (np.arange(32) + 0.5 - 16) / 16
    near = fall > 0.45  # farther away, one pixel is more than MAX_DEPTH_SHIFT
    assert picture.depth[near] == pytest.approx(np.repeat(1 / fall[near], 32).reshape(-1, 32), rel=1e-3)
    assert picture.depth[fall < 0].max() == 0


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_the_nearer_surface_wins_whatever_the_order(order: list[int]):
    scene = [(facing(distance=2.0, side=6, material=BLUE), 1), (facing(distance=1.0, side=0.5), 2)]
    picture = draw(*(scene[place] for place in order))
    assert picture.instances[16, 16] == 2
    assert picture.depth[16, 16] == pytest.approx(1.0)
    assert picture.rgb[16, 16].tolist() == [255, 0, 0]
    assert picture.instances[16, 2] == 1
    assert picture.rgb[16, 2].tolist() == [0, 0, 255]


def test_a_surface_close_to_the_camera_has_no_holes():
    slanted = rectangle((-5, -5, -12), (10, 0, 0), (0, 10, 11.5), RED)
    picture = draw((facing(distance=14.0, side=40, material=BLUE), 1), (slanted, 2))
    assert (picture.instances[2:20, 8:24] == 2).all()
    assert (picture.rgb[2:20, 8:24, 2] == 0).all()


def test_points_project_as_through_a_pinhole():
    view = camera(size=100)
    points = np.array([[0.0, 0, -1], [1, 0, -2], [0, 1, -2], [-1, -1, -4]])
    assert view.to_view(points)[:, 2].tolist() == [1, 2, 2, 4]
    assert view.to_pixels(view.to_view(points)) == pytest.approx(np.array([[50, 50], [75, 50], [50, 25], [37.5, 62.5]]))


def test_the_field_of_view_spans_the_picture():
    view = camera(size=64, field_of_view=60, eye=(1.0, 2.0, 3.0), target=(4.0, 1.0, 1.0))
    right, down, forward = view.axes
    assert view.axes @ view.axes.T == pytest.approx(np.eye(3))
    assert down[1] < 0
    edge = np.array(view.eye) + forward + math.tan(math.radians(30)) * right
    assert view.to_pixels(view.to_view(edge)) == pytest.approx([64, 32])
    assert view.to_pixels(view.to_view(np.array(view.target))) == pytest.approx([32, 32])


def test_where_nothing_is_stays_background():
    picture = draw((facing(distance=1.0, side=0.2), 3))
    assert picture.rgb[0, 0].tolist() == [BACKGROUND] * 3
    assert (picture.depth[0, 0], picture.instances[0, 0]) == (0, 0)


def test_what_is_behind_the_camera_is_not_drawn():
    picture = draw((facing(distance=-1.0, side=4), 1), (facing(distance=0.01, side=1), 2))
    assert picture.depth.max() == 0


@pytest.mark.parametrize("angle", [0, 30, 60, 90])
def test_brightness_follows_lamberts_law(angle: float):
    light = (math.sin(math.radians(angle)), 0.0, math.cos(math.radians(angle)))
    picture = draw((facing(distance=1.0, side=4), 1), light=light)
    expected = 255 * (AMBIENT + (1 - AMBIENT) * math.cos(math.radians(angle)))
    assert picture.rgb[16, 16, 0] == pytest.approx(expected, abs=1)


def test_a_texture_is_upright_and_repeats():
    quarters = np.zeros((2, 2, 4), np.uint8)
    quarters[..., 3] = 255
    quarters[0, 0, 0], quarters[0, 1, 1], quarters[1, 0, 2] = 255, 255, 255
    # From (-1, -1) to (1, 1) at distance one, so each of four copies has 16 pixels.
    picture = draw((facing(distance=1.0, side=2.0, material=Material(texture=quarters)), 1))
    for top, left in ((0, 0), (0, 16), (16, 16)):
        assert picture.rgb[top + 4, left + 4].tolist() == [255, 0, 0]
        assert picture.rgb[top + 4, left + 12].tolist() == [0, 255, 0]
        assert picture.rgb[top + 12, left + 4].tolist() == [0, 0, 255]
        assert picture.rgb[top + 12, left + 12].tolist() == [0, 0, 0]


def test_glass_and_the_cut_out_part_of_a_texture_are_not_there():
    hole = np.zeros((1, 2, 4), np.uint8)
    hole[0, 0] = 255
    leaf = draw((facing(distance=1.0, side=2.0, material=Material(texture=hole)), 1))
    assert (leaf.depth[16, 4], leaf.depth[16, 12]) == (1, 0)
    glass = draw((facing(distance=1.0, side=2.0, material=replace(RED, opacity=0.1)), 1))
    assert glass.depth.max() == 0


def test_every_pixel_of_a_surface_gets_enough_points():
    view = camera(size=16)
    points = sample(facing(distance=2.0, side=8.0), 1, view, np.random.default_rng(0))
    places = np.floor(view.to_pixels(points.view)).astype(int)
    inside = ((places >= 0) & (places < 16)).all(-1)
    assert inside.sum() / 16**2 == pytest.approx(SAMPLES_PER_PIXEL, rel=0.1)


def test_many_small_triangles_get_as_many_points_as_one_large_one():
    whole = facing(distance=2.0, side=2.0)
    fine = whole
    for _ in range(6):
        fine = fine.quartered(np.ones(len(fine.corners), bool))
    counts = [len(sample(mesh, 1, camera(), np.random.default_rng(0)).view) for mesh in (whole, fine)]
    assert counts[0] == pytest.approx(counts[1], abs=1)


def test_a_huge_triangle_takes_few_points_more_than_it_has_pixels():
    ground = rectangle((-1000, -1, -1000), (2000, 0, 0), (0, 0, 2000), RED)
    points = sample(ground, 1, camera(), np.random.default_rng(0))
    # Half of the picture; a part that is twice as far at one end has at most 8 times too many, and some reach outside.
    assert len(points.view) < 16 * SAMPLES_PER_PIXEL * 32**2 / 2


def test_the_same_generator_gives_the_same_picture():
    first, second = (draw((facing(distance=2.0), 1)) for _ in range(2))
    assert np.array_equal(first.rgb, second.rgb)


def test_reducing_averages_colour_and_takes_the_median_depth_with_its_instance():
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[0, :2] = 100
    depth, instances = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int64)
    depth[:2, :2], instances[:2, :2] = [[4, 1], [3, 2]], [[4, 1], [3, 2]]
    depth[2, 2], instances[2, 2] = 5, 5
    depth[2:, 0], instances[2:, 0] = 6, 6
    picture = Picture(rgb=rgb, depth=depth, instances=instances).reduced(2)
    assert picture.rgb[0, 0].tolist() == [50, 50, 50]
    # Of 1, 2, 3, 4 the lower median; nothing counts as the farthest.
    assert picture.depth.tolist() == [[2, 0], [6, 0]]
    assert picture.instances.tolist() == [[2, 0], [6, 0]]


@pytest.mark.parametrize("changes", [{"size": 0}, {"field_of_view": 180}, {"field_of_view": 0}, {"target": (0, -3, 0)}])
def test_impossible_cameras_are_refused(changes: dict[str, object]):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        camera(**changes)
