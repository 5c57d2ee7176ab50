"""Builds the bundled `icons` set: fetch pinned npm packages, draw, merge identical classes, write Parquet.

Every step is deterministic: the same packages give the same rows in the same order. Needs `npm` only for packages
that are not yet unpacked in `npm_dir`, and the `resvg-py` package for drawing.
"""

import hashlib
import io
import json
import multiprocessing
import subprocess
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.progress import track

from elastic.data import schema
from elastic.data.icon_sets import Drawing, IconSet, find_drawings
from elastic.data.icons import EMOJI_NAMES, ICON_PACKAGES, IMAGE_SIZE, IconPackage
from elastic.errors import DataError

ATTRIBUTION_COLUMNS = ("style", "icon_set", "icon_name", "license", "author", "attribution", "version")
_TEXT_COLUMNS = ["domain", "label", "caption", "caption_id", "source", "split", *ATTRIBUTION_COLUMNS]
ROWS_PER_GROUP = 512
"""A row group is what a reader fetches to get one row: about 0.5 MB here."""

_MIN_INK = 0.01
"""Share of pixels that must be visible (alpha above 16): less is an empty drawing."""
_PERCENT_TRAIN, _PERCENT_VAL = 70, 10
_DRAW_CHUNK = 64


def build_icons(out: Path, npm_dir: Path, num_processes: int) -> pa.Table:
    """Draw the whole set and write it to `out` with `LICENSES.md` beside it; returns the rows.

    Raises:
        DataError: a package cannot be fetched, or has another version than the pinned one.
    """
    for package in track((*ICON_PACKAGES, EMOJI_NAMES), description="fetching packages"):
        fetch_package(package, npm_dir)
    drawings, sets = find_drawings(npm_dir)
    images = _draw_all(drawings, sets, num_processes)
    drawn = [
        (drawing, image)
        for drawing, image in zip(drawings, images, strict=True)
        if image is not None and (image[..., 3] > 16).mean() > _MIN_INK
    ]
    table = to_table(merge_identical(drawn))
    out.parent.mkdir(parents=True, exist_ok=True)
    # Images are compressed already; dictionaries and zstd shrink only the text columns.
    options: dict[str, Any] = {
        "compression": {name: "none" if name == schema.IMAGE else "zstd" for name in table.column_names},
        "use_dictionary": _TEXT_COLUMNS,
    }
    pq.write_table(table, out, row_group_size=ROWS_PER_GROUP, **options)
    (out.parent / "LICENSES.md").write_text(licenses(), "ascii")
    return table


def fetch_package(package: IconPackage, npm_dir: Path) -> None:
    """Make `npm_dir/<name>/package` hold exactly the pinned version, downloading it if it is absent.

    Raises:
        DataError: `npm` is missing or fails, or another version is already there.
    """
    manifest = npm_dir / package.name / "package" / "package.json"
    wanted = f"{package.npm_name}@{package.version}"
    if not manifest.exists():
        _npm_pack(wanted, manifest.parent.parent)
    found = json.loads(manifest.read_text("utf-8"))
    if (found["name"], found["version"]) != (package.npm_name, package.version):
        raise DataError(
            str(manifest.parent),
            f"holds {found['name']}@{found['version']}, wanted {wanted}",
            "remove the folder to fetch the pinned version",
        )


def _npm_pack(wanted: str, target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", wanted, "--silent", "--pack-destination", scratch]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise DataError(wanted, "npm is not installed", "install Node.js or pass --npm-dir") from error
        except subprocess.CalledProcessError as error:
            raise DataError(wanted, f"npm pack failed: {error.stderr.strip()[-300:]}", "check the network") from error
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")


def draw(svg: str) -> np.ndarray | None:
    """An RGBA image `[IMAGE_SIZE, IMAGE_SIZE, 4]` of an SVG document; `None` if it cannot be drawn."""
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=IMAGE_SIZE, height=IMAGE_SIZE, skip_system_fonts=True)
    except ValueError:
        # Some sets hold documents that resvg refuses; the class survives if two other styles draw it.
        return None
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE)))


def _draw_all(drawings: Sequence[Drawing], sets: dict[str, IconSet], num_processes: int) -> list[np.ndarray | None]:
    documents = [sets[drawing.icon_set].svg(drawing.icon_name, IMAGE_SIZE) for drawing in drawings]
    present = [document for document in documents if document is not None]
    # Spawned, not forked: the caller may hold threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        images = iter(track(pool.map(draw, present, chunksize=_DRAW_CHUNK), "drawing", total=len(present)))
        return [None if document is None else next(images) for document in documents]


def merge_identical(drawn: Sequence[tuple[Drawing, np.ndarray]]) -> list[tuple[Drawing, np.ndarray]]:
    """Rows whose classes look different: classes that some style draws identically are one or are dropped.

    Flags that one style draws identically (Norway and Bouvet Island) become one class. Elsewhere, as with people
    of different gender or the first frame of an animation, only the first class by name stays. Each class keeps
    one drawing per style, and at least two styles.
    """
    classes_by_picture: defaultdict[str, set[str]] = defaultdict(set)
    for drawing, image in drawn:
        classes_by_picture[hashlib.sha1(image.tobytes()).hexdigest()].add(drawing.label)
    root_of, dropped = _resolve_collisions(classes_by_picture.values())
    kept: list[tuple[Drawing, np.ndarray]] = []
    seen: set[tuple[str, str]] = set()
    for drawing, image in drawn:
        label = root_of(drawing.label)
        if drawing.label not in dropped and (label, drawing.style) not in seen:
            seen.add((label, drawing.style))
            kept.append((replace(drawing, label=label), image))
    num_styles = Counter(drawing.label for drawing, _ in kept)
    return [(drawing, image) for drawing, image in kept if num_styles[drawing.label] >= 2]


def _resolve_collisions(collisions: Iterable[set[str]]) -> tuple[Callable[[str], str], set[str]]:
    """A union-find over flags, and the classes to drop."""
    parent: dict[str, str] = {}
    dropped: set[str] = set()

    def root_of(label: str) -> str:
        while label in parent:
            label = parent[label]
        return label

    for labels in collisions:
        first, *others = sorted(labels)
        if others and all(label.startswith("flag/") for label in labels):
            for label in others:
                if root_of(label) != root_of(first):
                    parent[root_of(label)] = root_of(first)
        else:
            dropped.update(others)
    return root_of, dropped


def split_of(label: str) -> str:
    """The split of a class, by hash: stable when classes come or go."""
    bucket = int(hashlib.sha1(label.encode()).hexdigest(), 16) % 100
    if bucket < _PERCENT_TRAIN:
        return "train"
    return "val" if bucket < _PERCENT_TRAIN + _PERCENT_VAL else "test"


def to_table(rows: Sequence[tuple[Drawing, np.ndarray]]) -> pa.Table:
    """Rows in the schema of `schema`, with the attribution columns behind."""
    packages = {package.name: package for package in ICON_PACKAGES}
    text = pa.Table.from_pylist(
        [_row(drawing, packages[drawing.icon_set]) for drawing, _ in rows],
        schema=pa.schema([*schema.METADATA, *(pa.field(name, pa.string()) for name in ATTRIBUTION_COLUMNS)]),
    )
    images = pa.array([encode(image) for _, image in rows], pa.binary())
    return text.add_column(0, schema.ROW.field(schema.IMAGE), images)


def _row(drawing: Drawing, package: IconPackage) -> dict[str, object]:
    keywords = f": {', '.join(drawing.tags)}" if drawing.tags else ""
    return {
        "caption": drawing.caption,
        "synthetic_captions": [f"a drawing of {drawing.caption}{keywords}"],
        "domain": drawing.domain,
        "label": drawing.label,
        "caption_id": drawing.label,
        "source": "real",
        "split": split_of(drawing.label),
        "style": drawing.style,
        "icon_set": package.name,
        "icon_name": drawing.icon_name,
        "license": package.license,
        "author": package.author,
        "attribution": package.attribution,
        "version": package.version,
    }


def encode(image: np.ndarray) -> bytes:
    """Lossless WebP of an RGBA image: half of PNG's size on this set; colour below alpha 0 is kept."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, exact=True, method=4, quality=75)
    return buffer.getvalue()


def licenses() -> str:
    """The text of `LICENSES.md`: whose work the set holds, under which terms."""
    lines = [
        "# Licences of the bundled icons",
        "",
        "Every row of `icons.parquet` names its set, icon, author, version and licence. The drawings are unchanged",
        "apart from being rendered at 64 x 64 pixels. Those under CC-BY-SA stay under it, also in derived sets.",
        "Logos are trademarks of their owners; they are here to tell them apart, not to suggest endorsement.",
        "",
        "| set | version | author | licence | origin |",
        "|---|---|---|---|---|",
    ]
    for package in (*ICON_PACKAGES, EMOJI_NAMES):
        lines.append(
            f"| {package.npm_name} | {package.version} | {package.author} | {package.license} | {package.url} |"
        )
    return "\n".join(lines) + "\n"
