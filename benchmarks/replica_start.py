"""How long a replica takes from the wish for it to its first answer: process, imports, model, warm-up, ingress.

A server that may stop its last replica is left alone until it has; then one call is timed. It is held until a replica
is up, so it lasts as long as a start (and one inference, a hundredth of it). Several times, on the machine as it is:
what else runs there counts. `elastic simulate --start-delay-s` wants the result.

    python -m benchmarks.replica_start          # the model inside the package
"""

import io
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image
from rich.console import Console

from elastic.checkpoint import resolve_run
from elastic.client import Client
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.serve.app import APP_NAME, serving
from elastic.serve.command import ensure_profiled
from elastic.serve.config import ServeConfig
from elastic.serve.ingress.ports import free_port
from elastic.serve.scaling.scaler import ScalingRules

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Times of first answers from a server without replicas."""

    run_dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """Run directory; left out, the model inside the package."""
    num_starts: int = 5
    """Calls that each start a replica."""
    out: Path = RESULTS / "replica_start.json"
    """Where the JSON goes."""


def main(options: Options) -> None:
    """Measure, print, write."""
    run = resolve_run(options.run_dir)
    rules = ScalingRules(min_replicas=0, max_replicas=1, zero_after_s=1.0, window_s=1.0)
    config = ServeConfig(run=run, port=free_port("127.0.0.1"), http_port=free_port("127.0.0.1"), scaling=rules)
    ensure_profiled(config, "auto", Console())
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "PNG")
    load = os.getloadavg()[0]
    with serving(config) as server, Client(server.address, num_attempts=1, timeout_s=120.0) as client:
        seconds = []
        for _ in range(options.num_starts):
            wait_until_none_runs()
            began_s = time.monotonic()
            client.embed(images=[stream.getvalue()], latency_slo_ms=100_000)
            seconds.append(round(time.monotonic() - began_s, 2))
            print(f"{seconds[-1]:.2f} s")
    found = {
        "model": run.name,
        "seconds": seconds,
        "median_s": statistics.median(seconds),
        "load_before": load,
        "provenance": asdict(collect(device_fingerprint())),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"median {found['median_s']:.2f} s; wrote {options.out}")


def wait_until_none_runs() -> None:
    """Return when the last replica has stopped and the ingress has heard of it."""
    from ray import serve

    while serve.status().applications[APP_NAME].deployments["encoder"].replica_states:
        time.sleep(0.1)
    time.sleep(2.0)


if __name__ == "__main__":
    main(tyro.cli(Options))
