"""Faults put upon `elastic serve`, and what is seen of them: overload, mutated requests, half-open connections, kills.

    python -m benchmarks.faults            # a short round of each; writes no results
    python -m benchmarks.faults --full     # about eight minutes on two cores

Generator and server share the cores of this machine. HAProxy is told to close silent connections after 30 s instead of
300, so that nobody has to wait for them.
"""

import asyncio
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tyro
from rich.console import Console

from benchmarks.faults.half_open import hold_many
from benchmarks.faults.kills import kill_repeatedly
from benchmarks.faults.mutations import examples, send_mutated
from benchmarks.faults.overload import overload
from benchmarks.serving.processes import REPLICA, replicas, rss_by_role
from benchmarks.serving.server import Running, elastic_serve
from elastic.bench.inputs import contents
from elastic.bench.report import json_values
from elastic.checkpoint import resolve_run
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.serve.command import ensure_profiled
from elastic.serve.config import ServeConfig

RESULTS = Path(__file__).parents[1] / "results"
NUM_REPLICAS = 2
"""Of the server whose replicas are killed."""
SILENCE = {"RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30"}


Part = Literal["overload", "mutations", "half_open", "kills"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Put faults upon a server of the model in the package."""

    full: bool = False
    """60 s of overload, 10,000 mutated requests, 2,000 connections, six kills; and write the results."""
    parts: tuple[Part, ...] = get_args(Part)
    """Which faults; results of the others stay as they are in the file."""
    out: Path = RESULTS / "faults.json"
    """Where the JSON goes."""


def main(options: Options) -> None:
    """Put the faults, print what was seen, and write it if it was all of it."""
    run, console = resolve_run(None), Console()
    ensure_profiled(ServeConfig(run=run), "auto", console)
    os.environ |= SILENCE
    load = os.getloadavg()[0]
    for part in options.parts:
        flags = ["--num-replicas", str(NUM_REPLICAS)] if part == "kills" else []
        with elastic_serve(run, *flags) as server:
            found = put(part, server, options.full)
        console.print(part, found)
        if options.full:
            about = {"model": run.name, "load_before": load, "provenance": asdict(collect(device_fingerprint()))}
            write(options.out, part, found | about)


def put(part: Part, server: Running, full: bool) -> dict[str, object]:
    """One fault upon a server of its own."""
    inputs = contents(None, 0.2, np.random.default_rng(0))
    images = [item for item in inputs if isinstance(item, bytes)]
    match part:
        case "overload":
            return overload(server, inputs, flood_s=60.0 if full else 10.0)
        case "mutations":
            return mutations(server, images, 10_000 if full else 500)
        case "half_open":
            return hold_many(server, images, 2_000 if full else 200)
        case "kills":
            return kill_repeatedly(server, images, NUM_REPLICAS, 6 if full else 2)


def write(path: Path, part: Part, found: dict[str, object]) -> None:
    """Put one part into the file, beside the others."""
    others = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(others | {part: json_values(found)}, indent=1) + "\n", encoding="utf-8")


def mutations(server: Running, images: list[bytes], count: int) -> dict[str, object]:
    """What a server answers to mutated requests, and what they cost it."""
    seeded = examples(images[:3])
    asyncio.run(send_mutated(server.address, 200, 1, seeded))  # so that all that is loaded once is loaded
    before, before_mib = replicas(server.pid), rss_by_role(server.pid)[REPLICA]
    answers = asyncio.run(send_mutated(server.address, count, 0, seeded))
    return {
        "requests": count,
        "codes": dict(answers.codes.most_common()),
        "messages_with_internals": len(answers.leaks),
        "first_leaks": answers.leaks[:3],
        "replicas_lost": len(set(before) - set(replicas(server.pid))),
        "replica_mib": {"before": before_mib, "after": rss_by_role(server.pid)[REPLICA]},
    }


if __name__ == "__main__":
    main(tyro.cli(Options))
