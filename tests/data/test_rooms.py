import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from elastic.data.furniture import CATEGORIES, Piece
from elastic.data.render import render
from elastic.data.rooms import CLEARANCE_M, FLOOR_M, GAP_M, Placed, furnish, place_camera, shell

from .models import pieces

SEEDS = range(20)


@pytest.fixture
def stock(tmp_path: Path) -> list[Piece]:
    """Ten large and ten small pieces of two categories."""
    large, small = pieces(tmp_path, 10, "Bedroom", (1.6, 0.9, 2.1)), pieces(tmp_path, 10, "Office", (0.5, 1.2, 0.4))
    return large + small


def test_pieces_are_different_and_stand_on_the_floor_apart(stock: list[Piece]):
    for seed in SEEDS:
        placed = furnish(stock, 4, np.random.default_rng(seed))
        assert len({item.piece.path for item in placed}) == 4
        for item in placed:
            assert (item.footprint >= GAP_M - 1e-9).all()
            assert (item.footprint <= FLOOR_M).all()
        for one, other in itertools.combinations(placed, 2):
            gaps = np.maximum(one.footprint[0] - other.footprint[1], other.footprint[0] - one.footprint[1])
            assert gaps.max() > GAP_M


def test_categories_are_equally_likely_and_large_pieces_more_likely_than_small_ones(tmp_path: Path):
    one, many = pieces(tmp_path, 1, "Kitchen"), pieces(tmp_path / "..", 9, "Lights")
    draws = [furnish(one + many, 1, np.random.default_rng(seed))[0].piece for seed in range(400)]
    assert sum(piece.category == "Kitchen" for piece in draws) / 400 == pytest.approx(0.5, abs=0.08)
    high, low = pieces(tmp_path, 2, "Office")[0], pieces(tmp_path, 2, "Office", (0.25, 0.25, 0.25))[1]
    draws = [furnish([high, low], 1, np.random.default_rng(seed))[0].piece for seed in range(400)]
    assert sum(piece == high for piece in draws) / 400 == pytest.approx(0.8, abs=0.07)


def test_a_box_around_a_turned_piece_holds_all_of_it(stock: list[Piece]):
    for angle in (0.0, 0.4, math.pi / 2, 2.0, 5.0):
        item = Placed(piece=stock[0], x=1.0, z=2.0, angle=angle)
        floor = item.load().corners.reshape(-1, 3)[:, [0, 2]]
        assert np.array([floor.min(0), floor.max(0)]) == pytest.approx(item.footprint, abs=1e-5)


@pytest.mark.parametrize(("angle", "front"), [(0.0, (0, 1)), (math.pi / 2, (1, 0)), (math.pi, (0, -1))])
def test_the_angle_turns_the_front_from_z_to_x(tmp_path: Path, angle: float, front: tuple[int, int]):
    piece = pieces(tmp_path, 1)[0]
    before = Placed(piece=piece, x=0.0, z=0.0, angle=0.0).load().corners.reshape(-1, 3)
    after = Placed(piece=piece, x=0.0, z=0.0, angle=angle).load().corners.reshape(-1, 3)
    in_front = before[:, 2] > 0
    assert (after[in_front][:, [0, 2]] @ np.array(front) > 0).all()


def test_the_camera_stands_clear_and_has_every_piece_in_the_picture(stock: list[Piece]):
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        placed = furnish(stock, 4, rng)
        view = place_camera(placed, 64, rng)
        assert 1.4 <= view.eye[1] <= 1.75
        for item in placed:
            low, high = item.footprint
            nearest = np.clip([view.eye[0], view.eye[2]], low, high)
            assert np.hypot(*(nearest - [view.eye[0], view.eye[2]])) >= CLEARANCE_M - 1e-9
            middle = view.to_view(np.array([item.x, item.piece.size_m[1] / 2, item.z]))
            assert middle[2] > 0
            assert ((view.to_pixels(middle) > 0) & (view.to_pixels(middle) < 64)).all()


def test_floor_walls_and_ceiling_fill_the_picture(stock: list[Piece]):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        view = place_camera(furnish(stock, 4, rng), 16, rng)
        picture = render([(shell(rng), 0)], view, (0.5, 1.0, 0.4), rng)
        assert picture.depth.min() > 1
        assert picture.depth.max() < 14


def test_rooms_look_different():
    colors = {shell(np.random.default_rng(seed)).materials[0].color for seed in SEEDS}
    patterned = [shell(np.random.default_rng(seed)).materials[0].texture is not None for seed in SEEDS]
    assert len(colors) > 5
    assert 0 < sum(patterned) < len(SEEDS)


def test_every_category_can_stand_in_a_room(tmp_path: Path):
    stock = [piece for category in CATEGORIES for piece in pieces(tmp_path, 1, category)]
    seen = {item.piece.category for seed in SEEDS for item in furnish(stock, 5, np.random.default_rng(seed))}
    assert seen == set(CATEGORIES)
