"""Faults put upon `elastic serve`, and what is seen of them: overload, mutated requests, half-open connections, kills.

    python -m benchmarks.faults            # a short round of each; writes no results
    python -m benchmarks.faults --full     # about five minutes on two cores

Generator and server share the cores of this machine. HAProxy is told to close silent connections after 30 s instead of
300, so that nobody has to wait for them.
"""

import asyncio
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

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
SILENCE = {"RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "30"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Put faults upon a server of the model in the package."""

    full: bool = False
    """60 s of overload, 10,000 mutated requests, 2,000 connections, ten kills; and write the results."""
    out: Path = RESULTS / "faults.json"
    """Where the JSON goes."""


def main(options: Options) -> None:
    """Measure, print, and write if it was all of it."""
    run, console = resolve_run(None), Console()
    ensure_profiled(ServeConfig(run=run), "auto", console)
    os.environ |= SILENCE
    inputs = contents(None, 0.2, np.random.default_rng(0))
    images = [item for item in inputs if isinstance(item, bytes)]
    load, found = os.getloadavg()[0], {}
    with elastic_serve(run) as server:
        found["overload"] = overload(server, inputs, flood_s=60.0 if options.full else 10.0)
        console.print("overload", found["overload"])
        found["mutations"] = mutations(server, images, 10_000 if options.full else 500)
        console.print("mutations", found["mutations"])
        found["half_open"] = hold_many(server, images, 2_000 if options.full else 200)
        console.print("half_open", found["half_open"])
    with elastic_serve(run, "--num-replicas", "2") as server:
        found["kills"] = kill_repeatedly(server, images, 10 if options.full else 3)
        console.print("kills", found["kills"])
    if options.full:
        about = {"model": run.name, "load_before": load, "provenance": asdict(collect(device_fingerprint()))}
        options.out.write_text(json.dumps(json_values(found | about), indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {options.out}")


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
