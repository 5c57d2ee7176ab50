"""Triangle meshes with colours, as Wavefront OBJ and MTL files describe them.

Metres, y up. Read is what a flat-shaded picture needs: positions, texture coordinates, faces, and of materials the
diffuse colour (`Kd`), the opacity (`d`) and the colour texture (`map_Kd`). Normals, bump maps and reflections are not.
"""

import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources.abc import Traversable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image

from elastic.errors import DataError

TEXTURE_SIZE = 128
"""Longest side that a texture is reduced to: a piece of furniture covers fewer pixels than that."""


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """How a surface looks, without light."""

    color: tuple[float, float, float] = (0.7, 0.7, 0.7)
    opacity: float = 1.0
    texture: UInt8[np.ndarray, "height width 4"] | None = None
    """RGBA, first row on top; it repeats, and replaces the colour."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mesh:
    """Triangles, each of one material."""

    corners: Float32[np.ndarray, "triangles 3 xyz=3"]
    uv: Float32[np.ndarray, "triangles 3 2"]
    """Texture coordinates of the corners: u to the right, v up, one texture from 0 to 1."""
    material_of: Int[np.ndarray, " triangles"]
    """Place in `materials`."""
    materials: tuple[Material, ...]

    def transformed(self, matrix: Float[np.ndarray, "3 3"], offset: Float[np.ndarray, "3"]) -> "Mesh":
        """The mesh with every point `p` moved to `matrix @ p + offset`."""
        return replace(self, corners=(self.corners @ matrix.T + offset).astype(np.float32))

    def fitted(self, width: float, height: float, depth: float) -> "Mesh":
        """The mesh stretched to a bounding box of this size (x, y, z) that stands on the origin."""
        points = self.corners.reshape(-1, 3)
        low, high = points.min(0), points.max(0)
        # A flat mesh has no extent to stretch along one axis.
        scale = np.array([width, height, depth]) / np.where(high > low, high - low, 1)
        foot = np.array([(low[0] + high[0]) / 2, low[1], (low[2] + high[2]) / 2])
        return self.transformed(np.diag(scale), -foot * scale)

    def subset(self, kept: Bool[np.ndarray, " triangles"]) -> "Mesh":
        """Some of the triangles."""
        return replace(self, corners=self.corners[kept], uv=self.uv[kept], material_of=self.material_of[kept])

    def quartered(self, chosen: Bool[np.ndarray, " triangles"]) -> "Mesh":
        """The same surface with four triangles for each chosen one, cut through the middles of its edges."""
        return replace(
            self,
            corners=np.concatenate([self.corners[~chosen], _quarters(self.corners[chosen])]),
            uv=np.concatenate([self.uv[~chosen], _quarters(self.uv[chosen])]),
            material_of=np.concatenate([self.material_of[~chosen], np.tile(self.material_of[chosen], 4)]),
        )


def _quarters(corners: Float32[np.ndarray, "triangles 3 axes"]) -> Float32[np.ndarray, "four_times 3 axes"]:
    middles = (corners + np.roll(corners, -1, 1)) / 2
    first, second, third = np.moveaxis(corners, 1, 0)
    one_two, two_three, three_one = np.moveaxis(middles, 1, 0)
    quarters = (
        (first, one_two, three_one),
        (one_two, second, two_three),
        (three_one, two_three, third),
        (two_three, three_one, one_two),
    )
    return np.concatenate([np.stack(quarter, 1) for quarter in quarters])


def join(meshes: Sequence[Mesh]) -> Mesh:
    """Several meshes as one."""
    firsts = np.cumsum([0, *(len(mesh.materials) for mesh in meshes)])
    return Mesh(
        corners=np.concatenate([mesh.corners for mesh in meshes]),
        uv=np.concatenate([mesh.uv for mesh in meshes]),
        material_of=np.concatenate([mesh.material_of + first for mesh, first in zip(meshes, firsts, strict=False)]),
        materials=tuple(material for mesh in meshes for material in mesh.materials),
    )


def rectangle(corner: Sequence[float], along: Sequence[float], across: Sequence[float], material: Material) -> Mesh:
    """A rectangle from a corner and two edges; its texture repeats every metre."""
    edges = np.array([along, across], np.float64)
    # Two triangles, as steps along and across.
    steps = np.array([[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [0, 1]]])
    return Mesh(
        corners=(np.array(corner) + steps @ edges).astype(np.float32),
        uv=(steps * np.linalg.norm(edges, axis=1)).astype(np.float32),
        material_of=np.zeros(2, np.int64),
        materials=(material,),
    )


def load_obj(folder: Traversable, path: str) -> Mesh:
    """The mesh of an OBJ file below a folder or in a zip file.

    What a material asks for and the folder lacks is left out, as OBJ viewers do: published models name textures that
    never left their author's disk. A face without a known material is grey.

    Raises:
        DataError: the file holds no faces, or a line that cannot be understood.
    """
    reader = _ObjReader()
    for number, line in enumerate((folder / path).read_text("latin-1").splitlines(), 1):
        try:
            reader.read(line.split())
        except ValueError as error:
            raise DataError(path, f"line {number} is {line[:80]!r}", "check that it is an OBJ file") from error
    if not reader.triangles:
        raise DataError(path, "holds no faces", "check that it is an OBJ file")
    directory = path.rpartition("/")[0]
    materials: dict[str, Material] = {}
    for library in reader.libraries:
        materials |= _load_mtl(folder / directory if directory else folder, library)
    return reader.mesh(materials, path)


@dataclass(slots=True)
class _ObjReader:
    positions: list[list[float]] = field(default_factory=list)
    uvs: list[list[float]] = field(default_factory=list)
    triangles: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    """Position and texture coordinate, counted from 0, of three corners."""
    names: list[str] = field(default_factory=list)
    """Material of each triangle."""
    libraries: list[str] = field(default_factory=list)
    name: str = ""

    def read(self, words: list[str]) -> None:
        """Take in one line."""
        match words:
            case ["v", x, y, z, *_]:
                self.positions.append([float(x), float(y), float(z)])
            case ["vt", u, v, *_]:
                self.uvs.append([float(u), float(v)])
            case ["f", *vertices]:
                first, *others = [self._corner(vertex) for vertex in vertices]
                fan = [(first, *pair) for pair in itertools.pairwise(others)]
                self.triangles += fan
                self.names += [self.name] * len(fan)
            case ["usemtl", *name]:
                self.name = " ".join(name)
            case ["mtllib", *name]:
                self.libraries.append(" ".join(name))

    def _corner(self, vertex: str) -> tuple[int, int]:
        position, _, rest = vertex.partition("/")
        uv = rest.partition("/")[0]
        return _index(position, len(self.positions)), _index(uv, len(self.uvs)) if uv else -1

    def mesh(self, materials: dict[str, Material], path: str) -> Mesh:
        corners = np.array(self.triangles)
        # The texture coordinate of a corner without one is -1, which reads the row added here.
        uvs = np.array([*self.uvs, [0.0, 0.0]], np.float32)
        if corners[..., 0].max() >= len(self.positions) or corners[..., 1].max() >= len(self.uvs):
            raise DataError(path, "a face names a vertex that is not there", "check that the file is complete")
        names = list(dict.fromkeys(self.names))
        place_of = {name: place for place, name in enumerate(names)}
        return Mesh(
            corners=np.array(self.positions, np.float32)[corners[..., 0]],
            uv=uvs[corners[..., 1]],
            material_of=np.array([place_of[name] for name in self.names]),
            materials=tuple(materials.get(name, Material()) for name in names),
        )


def _index(text: str, count: int) -> int:
    """OBJ counts from 1, or backwards from the last one so far."""
    number = int(text)
    if number == 0 or number < -count:
        raise ValueError(text)
    return number - 1 if number > 0 else count + number


def _load_mtl(folder: Traversable, path: str) -> dict[str, Material]:
    """The materials of an MTL file by name; none if there is no such file."""
    if not (folder / path).is_file():
        return {}
    materials: dict[str, Material] = {}
    name = None
    for line in (folder / path).read_text("latin-1").splitlines():
        key, _, value = line.strip().partition(" ")
        if key == "newmtl":
            name = value.strip()
            materials[name] = Material()
        elif name is not None:
            materials[name] = _with_property(materials[name], key, value.strip(), folder)
    return materials


def _with_property(material: Material, key: str, value: str, folder: Traversable) -> Material:
    if key == "Kd":
        red, green, blue = (float(word) for word in value.split()[:3])
        return replace(material, color=(red, green, blue))
    if key == "d":
        return replace(material, opacity=float(value))
    if key == "map_Kd" and (folder / value).is_file():
        return replace(material, texture=_load_texture((folder / value).read_bytes()))
    return material


def _load_texture(encoded: bytes) -> UInt8[np.ndarray, "height width 4"]:
    with Image.open(io.BytesIO(encoded)) as image:
        rgba = image.convert("RGBA")
    rgba.thumbnail((TEXTURE_SIZE, TEXTURE_SIZE))
    return np.asarray(rgba)
