"""The verb `elastic keys`: add, list and remove the API keys of a server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from elastic.errors import ConfigError
from elastic.serve.access.keys import ApiKey, create_key, editing, load_keys

DEFAULT_FILE = Path("keys.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Add:
    """Make a key and print it, once: the file keeps only its SHA-256.

    A running server (`elastic serve --api-keys FILE`) takes it within about a second. Limits are those of the
    whole server, however many replicas it has.

    Example: elastic keys add mobile --file keys.json --rate 20
    """

    name: Annotated[str, tyro.conf.Positional]
    """Who will use it."""
    file: Path = DEFAULT_FILE
    """Key file; made, for your eyes only, if it is not there."""
    rate: float | None = None
    """Requests per second in the long run; left out, any number. Each message of a stream is a request."""
    burst: int | None = None
    """Requests that may come at once after a pause; left out, as many as in one second."""
    concurrency: int | None = None
    """Requests at work at once; left out, any number."""

    def run(self) -> None:
        """Write the file, then print the key alone on standard output.

        Raises:
            ConfigError: the name is taken, a limit is not positive, or the file cannot be used.
        """
        entry, secret = create_key(self.name, rate=self.rate, burst=self.burst, concurrency=self.concurrency)
        with editing(self.file) as entries:
            if any(other.name == self.name for other in entries):
                raise ConfigError("name", self.name, "has a key already; remove it first or choose another name")
            entries.append(entry)
        Console(stderr=True).print(f"added to [bold]{escape(str(self.file))}[/bold]; the key is shown only now:")
        print(secret)


@dataclass(frozen=True, kw_only=True, slots=True)
class List:
    """Show whose keys a file holds, and their limits.

    Example: elastic keys list --file keys.json
    """

    file: Path = DEFAULT_FILE
    """Key file."""

    def run(self) -> None:
        """Print the table.

        Raises:
            ConfigError: the file cannot be used.
        """
        Console().print(render(load_keys(self.file)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Remove:
    """Take a key out of the file; a running server refuses it within about a second.

    Example: elastic keys remove mobile --file keys.json
    """

    name: Annotated[str, tyro.conf.Positional]
    """Whose key."""
    file: Path = DEFAULT_FILE
    """Key file."""

    def run(self) -> None:
        """Write the file.

        Raises:
            ConfigError: there is no key of that name, or the file cannot be used.
        """
        load_keys(self.file)  # a file that is not there is an error here
        with editing(self.file) as entries:
            kept = [entry for entry in entries if entry.name != self.name]
            if len(kept) == len(entries):
                names = ", ".join(entry.name for entry in entries) or "none"
                raise ConfigError("name", self.name, f"has no key in {self.file}; it holds: {names}")
            entries[:] = kept
        Console().print(f"removed [bold]{escape(self.name)}[/bold] from {escape(str(self.file))}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Keys:
    """Add, list or remove the API keys of a server."""

    command: Annotated[
        Annotated[Add, tyro.conf.subcommand("add")]
        | Annotated[List, tyro.conf.subcommand("list")]
        | Annotated[Remove, tyro.conf.subcommand("remove")],
        tyro.conf.arg(name=""),
    ]
    """What to do."""

    def run(self) -> None:
        """Do it."""
        self.command.run()


def render(entries: tuple[ApiKey, ...]) -> Table:
    """A line per key; a limit that is not set is a dash."""
    table = Table(box=SIMPLE, pad_edge=False)
    for column in ("name", "created", "requests/s", "burst", "at once"):
        table.add_column(column, justify="left" if column in ("name", "created") else "right")
    for entry in entries:
        limits = (entry.rate, entry.burst, entry.concurrency)
        table.add_row(escape(entry.name), entry.created, *("-" if value is None else f"{value:g}" for value in limits))
    return table
