"""Pictures of meshes by splatting points: colour, metric depth and instance of every pixel.

Surfaces are sampled so densely that every pixel they cover receives several points, wherever the camera stands.
Each point is drawn on the 2 x 2 pixels around it and the nearest one wins, which closes what holes are left. The
picture is drawn several times larger than asked for and reduced. Only numpy, no state: the same scene, camera and
generator give the same picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from elastic.data.mesh import Mesh
from elastic.errors import ConfigError

SUPERSAMPLING = 3
"""Pixels drawn for one pixel of the picture, in each direction; odd, so that one of them has the same middle."""
SAMPLES_PER_PIXEL = 3.0
"""Points of one surface that a pixel receives on average: a 2 x 2 patch misses a surface once in e^12."""
NEAR_M = 0.05
"""Surfaces nearer to the camera than this are not drawn."""
MIN_OPACITY = 0.3
"""Less opaque surfaces (glass, the cut-out part of a leaf) are not there."""
MAX_DEPTH_SHIFT = 0.05
"""Largest correction of a point's depth to that of its pixel's centre, as a fraction."""
AMBIENT = 0.5
"""Brightness of a surface that no light meets at an angle."""
BACKGROUND = 235
"""Grey value where nothing is."""
_MAX_CUTS = 12


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Camera:
    """A pinhole camera with square pixels and the world's y upwards in the picture."""

    eye: tuple[float, float, float]
    """Where it stands, in metres."""
    target: tuple[float, float, float]
    """What is in the middle of the picture."""
    field_of_view: float
    """Angle between the left and the right edge, in degrees."""
    size: int
    """Width and height of the picture in pixels."""

    def __post_init__(self) -> None:
        if not 0 < self.field_of_view < 180:
            raise ConfigError("field_of_view", self.field_of_view, "must lie between 0 and 180 degrees")
        if self.size < 1:
            raise ConfigError("size", self.size, "must be at least 1 pixel")
        if self.eye[0] == self.target[0] and self.eye[2] == self.target[2]:
            raise ConfigError("target", self.target, "must not lie straight above or below the eye")

    @property
    def focal_length(self) -> float:
        """Pixels that one unit covers at distance one."""
        return self.size / 2 / math.tan(math.radians(self.field_of_view) / 2)

    @property
    def axes(self) -> Float[np.ndarray, "3 3"]:
        """Unit vectors to the right, down and forward, as rows."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, (0.0, 1.0, 0.0))
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward])

    def to_view(self, points: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 3"]:
        """Points of the world by how far right, down and forward of the eye they lie."""
        return (points - np.array(self.eye)) @ self.axes.T

    def to_pixels(self, view: Float[np.ndarray, "*batch 3"]) -> Float[np.ndarray, "*batch 2"]:
        """Where points before the camera are seen; the top left pixel reaches from (0, 0) to (1, 1)."""
        return view[..., :2] / view[..., 2:] * self.focal_length + self.size / 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Picture:
    """What the camera sees."""

    rgb: UInt8[np.ndarray, "size size 3"]
    depth: Float32[np.ndarray, "size size"]
    """Metres along the optical axis; 0 where nothing is."""
    instances: Int[np.ndarray, "size size"]
    """The instance each pixel shows; 0 where nothing is."""

    def reduced(self, factor: int) -> "Picture":
        """The picture with `factor` x `factor` pixels as one: their mean colour, and depth and instance of one of them.

        That one is the median by depth, with nothing as the farthest. Depths are never averaged: between a chair and
        the wall behind it there is nothing.
        """
        rgb, depth, instances = (_blocks(image, factor) for image in (self.rgb, self.depth, self.instances))
        by_depth = np.where(depth > 0, depth, np.inf).argsort(-1, kind="stable")
        median = by_depth[..., (factor**2 - 1) // 2, None]
        return Picture(
            rgb=np.floor(rgb.mean(-1) + 0.5).astype(np.uint8),
            depth=np.take_along_axis(depth, median, -1)[..., 0],
            instances=np.take_along_axis(instances, median, -1)[..., 0],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Points:
    """Samples of surfaces, seen from a camera."""

    view: Float[np.ndarray, "points 3"]
    """Metres right, down and forward of the eye."""
    normals: Float[np.ndarray, "points 3"]
    """Unit vectors of either sign, in the same axes."""
    colors: Float[np.ndarray, "points 3"]
    """RGB in [0, 1], without light."""
    instances: Int[np.ndarray, " points"]


def render(
    scene: Sequence[tuple[Mesh, int]],
    camera: Camera,
    light: tuple[float, float, float],
    rng: np.random.Generator,
) -> Picture:
    """A picture of meshes and the instances that they are; `light` points to where the light comes from."""
    fine = replace(camera, size=SUPERSAMPLING * camera.size)
    parts = [sample(mesh, instance, fine, rng) for mesh, instance in scene]
    points = Points(
        view=np.concatenate([part.view for part in parts]),
        normals=np.concatenate([part.normals for part in parts]),
        colors=np.concatenate([part.colors for part in parts]),
        instances=np.concatenate([part.instances for part in parts]),
    )
    return splat(points, fine, light).reduced(SUPERSAMPLING)


def sample(mesh: Mesh, instance: int, camera: Camera, rng: np.random.Generator) -> Points:
    """Points on the surfaces of a mesh, dense enough for this camera."""
    mesh = _refined(mesh.transformed(camera.axes, -camera.axes @ np.array(camera.eye)), camera)
    corners = mesh.corners.astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)
    # Counts are rounded so that their running sum is exact to one: many small triangles get few points fairly.
    total = np.cumsum(_points_needed(corners, camera))
    ends = np.floor(total + rng.random()).astype(np.int64)
    triangle = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    weights = _barycentric(len(triangle), rng)
    colors, opacity = _look_up(mesh, triangle, weights)
    kept = opacity >= MIN_OPACITY
    triangle, weights = triangle[kept], weights[kept]
    return Points(
        view=np.einsum("pc,pcx->px", weights, corners[triangle]),
        normals=normals[triangle],
        colors=colors[kept],
        instances=np.full(len(triangle), instance),
    )


def splat(points: Points, camera: Camera, light: tuple[float, float, float]) -> Picture:
    """Draw every point on the 2 x 2 pixels around it; the nearest one wins."""
    size = camera.size
    corner = np.floor(camera.to_pixels(points.view) - 0.5).astype(np.int64)
    patches = corner[:, None] + np.array([[0, 0], [1, 0], [0, 1], [1, 1]])
    order = np.argsort(-points.view[:, 2], kind="stable")
    pixels, drawn = patches[order].reshape(-1, 2), np.repeat(order, 4)
    inside = ((pixels >= 0) & (pixels < size)).all(-1)
    winner = np.full(size * size, -1)
    # Farthest first: where a place is written twice, numpy keeps the last.
    winner[pixels[inside] @ np.array([1, size])] = drawn[inside]
    hit = np.flatnonzero(winner >= 0)
    front = winner[hit]
    rgb = np.full((size * size, 3), BACKGROUND, np.uint8)
    rgb[hit] = np.clip(255 * points.colors[front] * _brightness(points.normals[front], camera, light) + 0.5, 0, 255)
    depth, instances = np.zeros(size * size, np.float32), np.zeros(size * size, np.int64)
    centers = np.stack([hit % size, hit // size], -1) + 0.5
    depth[hit] = _depth_at(centers, points.view[front], points.normals[front], camera)
    instances[hit] = points.instances[front]
    return Picture(
        rgb=rgb.reshape(size, size, 3), depth=depth.reshape(size, size), instances=instances.reshape(size, size)
    )


def _refined(mesh: Mesh, camera: Camera) -> Mesh:
    """The visible triangles of a mesh in the camera's axes, cut until none is much farther at one end than another."""
    for _ in range(_MAX_CUTS):
        mesh = mesh.subset(_may_be_seen(mesh.corners, camera))
        depth = mesh.corners[..., 2]
        deep = depth.max(1) > 2 * np.maximum(depth.min(1), NEAR_M)
        if not deep.any():
            break
        mesh = mesh.quartered(deep)
    return mesh.subset(mesh.corners[..., 2].min(1) > NEAR_M)


def _may_be_seen(corners: Float[np.ndarray, "triangles 3 3"], camera: Camera) -> Bool[np.ndarray, " triangles"]:
    """Whether no side of the pyramid of sight, one pixel wider than the picture, has a triangle wholly outside."""
    x, y, z = np.moveaxis(corners, -1, 0)
    limit = z * (camera.size / 2 + 1) / camera.focal_length
    inside = np.stack([z >= NEAR_M, x <= limit, x >= -limit, y <= limit, y >= -limit])
    return np.logical_and.reduce(inside.any(-1))


def _points_needed(corners: Float[np.ndarray, "triangles 3 3"], camera: Camera) -> Float[np.ndarray, " triangles"]:
    """How many samples give every pixel of each triangle enough.

    A small area `dA` at depth `z` covers `f^2 |n.p| / z^3 dA` pixels. `n.p` is the same all over the triangle's plane,
    so the corner nearest to the camera needs the densest sampling, and all of it gets that.
    """
    area_times_distance = np.abs(np.linalg.det(corners)) / 2
    return SAMPLES_PER_PIXEL * camera.focal_length**2 / corners[..., 2].min(-1) ** 3 * area_times_distance


def _barycentric(count: int, rng: np.random.Generator) -> Float[np.ndarray, "count 3"]:
    """Weights of three corners, uniform over a triangle."""
    root, share = np.sqrt(rng.random(count)), rng.random(count)
    return np.stack([1 - root, root * (1 - share), root * share], -1)


def _look_up(
    mesh: Mesh, triangle: Int[np.ndarray, " points"], weights: Float[np.ndarray, "points 3"]
) -> tuple[Float[np.ndarray, "points 3"], Float[np.ndarray, " points"]]:
    """Colour and opacity of points of a mesh."""
    material_of = mesh.material_of[triangle]
    colors = np.array([material.color for material in mesh.materials], np.float64)[material_of]
    opacity = np.array([material.opacity for material in mesh.materials], np.float64)[material_of]
    for place, material in enumerate(mesh.materials):
        if material.texture is not None:
            points = np.flatnonzero(material_of == place)
            uv = np.einsum("pc,pcx->px", weights[points], mesh.uv[triangle[points]])
            height, width, _ = material.texture.shape
            column, row = np.floor(uv * (width, -height)).astype(np.int64).T
            texels = material.texture[row % height, column % width] / 255
            colors[points] = texels[:, :3]
            opacity[points] *= texels[:, 3]
    return colors, opacity


def _brightness(
    normals: Float[np.ndarray, "points 3"], camera: Camera, light: tuple[float, float, float]
) -> Float[np.ndarray, "points 1"]:
    """Lambert's cosine law from both sides: a model's normals point anywhere."""
    direction = camera.axes @ np.array(light) / np.linalg.norm(light)
    return AMBIENT + (1 - AMBIENT) * np.abs(normals @ direction)[:, None]


def _depth_at(
    centers: Float[np.ndarray, "points 2"],
    view: Float[np.ndarray, "points 3"],
    normals: Float[np.ndarray, "points 3"],
    camera: Camera,
) -> Float[np.ndarray, " points"]:
    """Where the ray through a pixel's centre meets the plane of the point that was drawn there."""
    rays = np.concatenate([(centers - camera.size / 2) / camera.focal_length, np.ones((len(centers), 1))], -1)
    along = (normals * rays).sum(-1)
    depth = (normals * view).sum(-1) / np.where(along == 0, np.inf, along)
    return np.clip(depth, view[:, 2] * (1 - MAX_DEPTH_SHIFT), view[:, 2] * (1 + MAX_DEPTH_SHIFT))


def _blocks(image: np.ndarray, factor: int) -> np.ndarray:
    """Blocks of `factor` x `factor` pixels, with the pixels of a block as the last axis."""
    size = len(image) // factor
    blocks = image.reshape(size, factor, size, factor, *image.shape[2:])
    return np.moveaxis(blocks, (1, 3), (-2, -1)).reshape(size, size, *image.shape[2:], factor**2)
