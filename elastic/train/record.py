"""`run.json`: what a run is, so that it can be repeated, and so that a resumed run is the same run."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from elastic.errors import CheckpointError, ConfigError
from elastic.profile.provenance import Provenance

FILE = "run.json"
_MAX_DIFFERENCES = 5
_FREE = frozenset({"parallel"})
"""Fields that may be another when a run is resumed, because its checkpoints do not depend on them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """How the config came about: evaluating the recipe with the arguments gives it again."""

    recipe: str | None = None
    """Name of a recipe, `package.module:function`, or None for a config that was made in Python."""
    arguments: tuple[str, ...] = ()
    """The `--field value` flags that followed it."""


def describe(value: object) -> Any:
    """A config as JSON values; every dataclass names its class, so two kinds of objective never look alike."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"class": type(value).__name__} | {f.name: describe(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    assert value is None or isinstance(value, str | int | float | bool), f"{value!r} has no JSON form"
    return value


def write_record(run_dir: Path, config: object, origin: Origin, provenance: Provenance) -> None:
    """Describe a new run, whose config is a frozen dataclass; creates its directory.

    Raises:
        CheckpointError: the directory already holds a run.
    """
    if (run_dir / FILE).exists():
        advice = "add --resume to continue it, or choose another --run-dir"
        raise CheckpointError(str(run_dir), "already holds a run", advice)
    run_dir.mkdir(parents=True, exist_ok=True)
    record = asdict(origin) | {"config": describe(config)} | asdict(provenance)
    temporary = run_dir / f".{FILE}.tmp"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(run_dir / FILE)


def read_record(run_dir: Path) -> dict[str, Any]:
    """What `write_record` wrote, as JSON values.

    Raises:
        CheckpointError: there is no run in the directory.
    """
    path = run_dir / FILE
    if not path.exists():
        raise CheckpointError(str(run_dir), "holds no run", "check --run-dir, or leave out --resume to start one")
    return json.loads(path.read_text(encoding="utf-8"))


def provenance(run_dir: Path) -> dict[str, Any]:
    """What a deliverable's manifest repeats of `run.json`: all but the config, which stays there."""
    return {name: value for name, value in read_record(run_dir).items() if name != "config"}


def read_origin(run_dir: Path) -> Origin:
    """How the config of the run in `run_dir` came about."""
    record = read_record(run_dir)
    return Origin(recipe=record["recipe"], arguments=tuple(record["arguments"]))


def check_unchanged(run_dir: Path, config: object) -> None:
    """Accept only the config that the run was started with, but for how its workers share the model.

    Raises:
        ConfigError: a field differs, by the command line or because the recipe's code changed since.
        CheckpointError: there is no run in the directory.
    """
    before, now = dict(_leaves(read_record(run_dir)["config"])), dict(_leaves(describe(config)))
    names = sorted((before.keys() | now.keys()) - _FREE)
    differing = [key for key in names if before.get(key) != now.get(key)]
    if not differing:
        return
    first = differing[0]
    more = f" (and {', '.join(differing[1:_MAX_DIFFERENCES])} differ too)" if differing[1:] else ""
    rule = f"the run in {run_dir} was started with {before.get(first)!r}{more}; resume with the same recipe and flags"
    raise ConfigError(first, now.get(first), rule)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of nested JSON values, by its dotted name."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield name, value
        return
    for key, item in items:
        yield from _leaves(item, f"{name}.{key}" if name else str(key))
