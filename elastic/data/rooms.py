"""Rooms of real furniture: what stands where, what the walls look like, and where the camera is.

A room is a floor, two walls and a ceiling with pieces at their real size. The corner of the walls is the origin, the
floor lies along x and z, and y points up; all lengths are metres. Everything drawn at random comes from the generator
that is passed in.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from elastic.data.furniture import CATEGORIES, Piece, load_piece
from elastic.data.mesh import Material, Mesh, join, rectangle
from elastic.data.render import Camera

FIELD_OF_VIEW = 60.0
"""Degrees. The same in every room: with unknown optics, metres cannot be told from a picture."""
FLOOR_M = 3.8
"""Pieces stand on a square of this side before the corner of the two walls."""
SHELL_M = 9.0
"""How far floor, walls and ceiling reach from the corner: beyond what the camera sees."""
CLEARANCE_M = 0.9
"""Least distance between the camera and a piece."""
GAP_M = 0.06
"""Least distance between two pieces, and between a piece and a wall."""
_NUM_SPOTS = 60
_NUM_ROOMS_TRIED = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A piece and where it stands: the corner of the walls is the origin, the floor x and z."""

    piece: Piece
    x: float
    z: float
    angle: float
    """Radians about the vertical; at 0 the front faces +z."""

    @property
    def footprint(self) -> Float[np.ndarray, "2 2"]:
        """Lowest and highest (x, z) of its box."""
        middle, half = np.array([self.x, self.z]), _half_extent(self.piece, self.angle)
        return np.stack([middle - half, middle + half])

    def load(self) -> Mesh:
        """Its mesh where it stands."""
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        turn = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
        return load_piece(self.piece).transformed(turn, np.array([self.x, 0.0, self.z]))


def furnish(pieces: Sequence[Piece], num_pieces: int, rng: np.random.Generator) -> list[Placed]:
    """Different pieces on the floor without overlap: categories are equally likely, larger pieces likelier."""
    members = {name: [piece for piece in pieces if piece.category == name] for name in CATEGORIES}
    names = [name for name in CATEGORIES if members[name]]
    for _ in range(_NUM_ROOMS_TRIED):
        chosen: dict[str, Piece] = {}
        while len(chosen) < min(num_pieces, len(pieces)):
            group = members[names[rng.integers(len(names))]]
            sizes = np.array([max(piece.size_m) for piece in group])
            piece = group[rng.choice(len(group), p=sizes / sizes.sum())]
            chosen[piece.path] = piece
        # The largest first: small ones still find a place between large ones.
        by_area = sorted(chosen.values(), key=lambda piece: -piece.size_m[0] * piece.size_m[2])
        if placed := _place_all(by_area, rng):
            return placed
    raise AssertionError(f"{num_pieces} pieces never fit on {FLOOR_M} m x {FLOOR_M} m")


def _place_all(pieces: Sequence[Piece], rng: np.random.Generator) -> list[Placed] | None:
    placed: list[Placed] = []
    for piece in pieces:
        spots = (_spot(piece, rng) for _ in range(_NUM_SPOTS))
        free = (spot for spot in spots if not any(_overlap(spot, other) for other in placed))
        spot = next(free, None)
        if spot is None:
            return None
        placed.append(spot)
    return placed


def _spot(piece: Piece, rng: np.random.Generator) -> Placed:
    """A place with the back to one of the walls, or anywhere at any angle."""
    kind = rng.choice(["wall x", "wall z", "free"], p=[0.3, 0.3, 0.4])
    angle = {"wall x": math.pi / 2, "wall z": 0.0, "free": rng.uniform(0, 2 * math.pi)}[kind]
    low = _half_extent(piece, angle) + GAP_M
    x, z = rng.uniform(low, np.maximum(FLOOR_M - low, low))
    if kind == "wall x":
        x = low[0]
    if kind == "wall z":
        z = low[1]
    return Placed(piece=piece, x=float(x), z=float(z), angle=angle)


def _half_extent(piece: Piece, angle: float) -> Float[np.ndarray, "2"]:
    """Half the sides, along x and z, of the box around a turned piece."""
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    width, _, depth = piece.size_m
    return np.array([cos * width + sin * depth, sin * width + cos * depth]) / 2


def _overlap(one: Placed, other: Placed) -> bool:
    (low, high), (other_low, other_high) = one.footprint, other.footprint
    return bool(((low <= other_high + GAP_M) & (other_low <= high + GAP_M)).all())


def place_camera(placed: Sequence[Placed], size: int, rng: np.random.Generator) -> Camera:
    """A camera at eye height before the walls that has the middle of every piece in the picture, and stands in none."""
    for x, z in _standpoints(rng):
        gaps = [np.maximum(item.footprint[0] - (x, z), (x, z) - item.footprint[1]) for item in placed]
        if min(float(np.linalg.norm(np.maximum(gap, 0))) for gap in gaps) < CLEARANCE_M:
            continue
        target_x, target_z = (FLOOR_M / 2 + rng.uniform(-0.5, 0.5, 2)).tolist()
        eye, target = (x, rng.uniform(1.4, 1.75), z), (target_x, rng.uniform(0.5, 0.9), target_z)
        camera = Camera(eye=eye, target=target, field_of_view=FIELD_OF_VIEW, size=size)
        view = camera.to_view(np.array([(item.x, item.piece.size_m[1] / 2, item.z) for item in placed]))
        pixels = camera.to_pixels(view)
        if (view[:, 2] > 0).all() and ((pixels > 0) & (pixels < size)).all():
            return camera
    raise AssertionError("unreachable: standpoints never end")


def _standpoints(rng: np.random.Generator) -> Iterator[tuple[float, float]]:
    """Places around the middle of the floor, away from the walls; the farther, the longer one has looked."""
    middle, distance = FLOOR_M / 2, 2.2
    while True:
        angle = math.radians(rng.uniform(10, 80))
        away = distance + rng.uniform(0, 0.6)
        yield middle + away * math.cos(angle), middle + away * math.sin(angle)
        distance += 0.02


def shell(rng: np.random.Generator) -> Mesh:
    """Floor, two walls and ceiling around the corner at the origin, in colours of their own."""
    height = rng.uniform(2.5, 2.9)
    floor, wall = _color(rng, 0.35, 0.8), _color(rng, 0.6, 0.95)
    ceiling = Material(color=(0.95, 0.95, 0.95))
    return join(
        [
            rectangle((0, 0, 0), (SHELL_M, 0, 0), (0, 0, SHELL_M), _pattern(floor, rng)),
            rectangle((0, 0, 0), (0, 0, SHELL_M), (0, height, 0), _pattern(wall, rng)),
            rectangle((0, 0, 0), (SHELL_M, 0, 0), (0, height, 0), _pattern(wall, rng)),
            rectangle((0, height, 0), (SHELL_M, 0, 0), (0, 0, SHELL_M), ceiling),
        ]
    )


def _color(rng: np.random.Generator, low: float, high: float) -> Float[np.ndarray, "3"]:
    """A muted colour: a grey value with a tint."""
    return np.clip(rng.uniform(low, high) + rng.uniform(-0.12, 0.12, 3), 0, 1)


def _pattern(color: Float[np.ndarray, "3"], rng: np.random.Generator) -> Material:
    """Plain, checkered or striped, with two or four fields a metre."""
    darker = color * rng.uniform(0.75, 0.92)
    kind = rng.choice(["plain", "checks", "stripes"], p=[0.5, 0.3, 0.2])
    if kind == "plain":
        red, green, blue = color.tolist()
        return Material(color=(red, green, blue))
    num_fields = int(rng.choice([2, 4]))
    row, column = np.indices((num_fields, num_fields))
    odd = (row + column if kind == "checks" else column) % 2 == 1
    texture = np.ones((*odd.shape, 4))
    texture[..., :3] = np.where(odd[..., None], darker, color)
    return Material(texture=(texture * 255).astype(np.uint8))
