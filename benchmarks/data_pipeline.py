"""Images per second of the Ray Data path against a torch DataLoader that does the same work.

Both execute the same plan with the same code (`elastic.data.execute`): read, decode, augment, tokenize, normalise.
They differ in what carries it: one Ray Data execution with an actor pool, or a DataLoader with as many worker
processes, reading ahead in both cases. Two workloads:

- `read`: every image is read from Parquet and decoded each time it is shown;
- `held`: images are decoded once and held (in Ray's object store; in each DataLoader worker's memory).

Each round runs both, in turn, from start to end. *Steady* is the rate from the first batch's arrival to the last's;
*first batch* is the start-up that it leaves out. A third measurement stands for training: the consumer computes for
`step_ms` per batch on one thread, and counts the time that it waits for data. Goals: steady >= 0.9 x DataLoader,
waiting < 5 % of the step.

It cannot show: several machines, images on remote storage, or large images, where decoding hides everything else.

    python benchmarks/data_pipeline.py
"""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch
import tyro
from torch.utils.data import DataLoader, Dataset

from elastic.batch import Batch
from elastic.data.catalog import open_catalog
from elastic.data.config import ClassBalanced, DataConfig, StreamConfig
from elastic.data.decode import decode_all
from elastic.data.execute import Executor, Held, ShardArrays
from elastic.data.feed import FeedConfig, is_held, to_batch
from elastic.data.pipeline import open_feed
from elastic.data.plan import Planner
from elastic.data.tokenizer import train_tokenizer
from elastic.model.config import Preprocess
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect

RESULTS = Path(__file__).parent / "results"
GOAL_RATIO, GOAL_WAIT = 0.9, 0.05
Workload = Literal["read", "held"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Ray Data against a torch DataLoader on the bundled icons."""

    rounds: int = 5
    """Runs of each path and workload; they alternate."""
    steps: int = 200
    """Batches of each run."""
    classes_per_batch: int = 128
    """Two images of each."""
    num_workers: int = 1
    """Actors of the pool, and worker processes of the DataLoader."""
    step_ms: float = 400.0
    """Computing time per batch of the stand-in for training."""
    wait_steps: int = 60
    """Batches over which waiting is measured, after ten."""
    seed: int = 0
    """Of the plan, and of the order within rounds."""
    out: Path = RESULTS / "data_pipeline.json"
    """Where the JSON goes."""


@dataclass(frozen=True, slots=True)
class Run:
    """One path over one workload, once."""

    path: str
    workload: str
    first_batch_s: float
    steady_images_per_s: float


class PlannedSteps(Dataset[ShardArrays]):
    """The plan as a map-style dataset: item `i` is step `i`."""

    def __init__(self, config: FeedConfig, num_steps: int) -> None:
        self._config, self._num_steps = config, num_steps
        self._made: tuple[Planner, Executor] | None = None

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> ShardArrays:
        if self._made is None:  # once in each worker process
            self._made = self._open()
        planner, executor = self._made
        return executor.execute(planner.shard(planner.step(step, self._config.data.weights), 0, 1))

    def _open(self) -> tuple[Planner, Executor]:
        torch.set_num_threads(1)
        config, data = self._config, self._config.data
        catalog, sources = open_catalog(data)
        held: list[Held | None] = []
        for rows, source in zip(catalog.streams, sources, strict=True):
            if is_held(data, len(rows)):
                canvases, broken = decode_all(source.read_images(rows.row_ids), data.canvas_size)
                held.append(Held(canvases=[canvases], broken=broken))
            else:
                held.append(None)
        executor = Executor(data, catalog, sources, config.tokenizer, config.max_tokens, held)
        return Planner(data, catalog, config.seed), executor


def torch_batches(config: FeedConfig, num_steps: int) -> Iterator[Batch]:
    """The DataLoader's batches."""
    catalog, _ = open_catalog(config.data)
    loader = DataLoader(
        PlannedSteps(config, num_steps),
        batch_size=None,
        num_workers=config.data.num_workers,
        prefetch_factor=max(2, config.data.prefetch_steps),
        # Spawned like Ray's: a forked copy of a process that runs threads may hang.
        multiprocessing_context="spawn",
    )
    for arrays in loader:
        yield to_batch(arrays, config, catalog)


def ray_batches(config: FeedConfig, num_steps: int) -> Iterator[Batch]:
    """Ray Data's batches."""
    feed = open_feed(config)
    try:
        yield from feed.batches(0, num_steps)
    finally:
        feed.close()


PATHS: dict[str, Callable[[FeedConfig, int], Iterator[Batch]]] = {"ray": ray_batches, "torch": torch_batches}


def measure(path: str, workload: Workload, config: FeedConfig, num_steps: int) -> Run:
    """One run of one path, consumed as fast as it comes."""
    start = time.perf_counter()
    arrivals, num_images = [], 0
    for batch in PATHS[path](config, num_steps):
        arrivals.append(time.perf_counter())
        num_images += len(batch.images)
    assert len(arrivals) == num_steps, (path, len(arrivals))
    steady = num_images * (num_steps - 1) / num_steps / (arrivals[-1] - arrivals[0])
    return Run(path, workload, arrivals[0] - start, steady)


def wait_fraction(path: str, config: FeedConfig, options: Options) -> float:
    """Share of its time that a consumer waits which computes for `step_ms` on each batch."""
    matrix = torch.rand(256, 256)
    batches = PATHS[path](config, 10 + options.wait_steps)
    waited_s = total_s = 0.0
    for step in range(10 + options.wait_steps):
        start = time.perf_counter()
        next(batches)
        arrived = time.perf_counter()
        while time.perf_counter() - arrived < options.step_ms / 1e3:
            matrix @ matrix
        if step >= 10:
            waited_s += arrived - start
            total_s += time.perf_counter() - start
    next(batches, None)
    return waited_s / total_s


def feed_config(options: Options, workload: Workload) -> FeedConfig:
    """The workload's configuration, with a tokenizer of the icons' captions."""
    sampling = ClassBalanced(classes_per_batch=options.classes_per_batch, images_per_class=2)
    data = DataConfig(streams=(StreamConfig(sampling=sampling),), num_workers=options.num_workers)
    if workload == "read":
        data = replace(data, hold_decoded_bytes=0)
    tokenizer = train_tokenizer(open_catalog(data)[0].texts(), 4096)
    preprocess = Preprocess(image_size=data.image_size)
    return FeedConfig(data=data, seed=options.seed, preprocess=preprocess, tokenizer=tokenizer)


def summarize(runs: list[Run], waits: dict[str, float]) -> dict[str, Any]:
    """Medians, their ratio and its spread over rounds, for each workload."""
    summary: dict[str, Any] = {"wait_fraction": waits}
    for workload in ("read", "held"):
        rates = {path: np.array([r.steady_images_per_s for r in runs if (r.path, r.workload) == (path, workload)])
                 for path in PATHS}  # fmt: skip
        first = {path: np.median([r.first_batch_s for r in runs if (r.path, r.workload) == (path, workload)])
                 for path in PATHS}  # fmt: skip
        ratios = rates["ray"] / rates["torch"]
        summary[workload] = {
            "images_per_s": {path: round(float(np.median(found)), 1) for path, found in rates.items()},
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_min_max": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
            "first_batch_s": {path: round(float(found), 2) for path, found in first.items()},
        }
    return summary


def main(options: Options) -> None:
    """Run, print and write everything."""
    torch.set_num_threads(1)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=4 + options.num_workers,
        object_store_memory=1024**3,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    configs: dict[Workload, FeedConfig] = {name: feed_config(options, name) for name in ("read", "held")}
    order, runs = np.random.default_rng(options.seed), []
    for round_number in range(options.rounds):
        for workload, config in configs.items():
            for path in order.permutation(list(PATHS)).tolist():
                runs.append(measure(path, workload, config, options.steps))
                found = runs[-1]
                print(
                    f"round {round_number} {workload} {path:5}: {found.steady_images_per_s:7.0f} images/s, "
                    f"first batch after {found.first_batch_s:.1f} s",
                    flush=True,
                )
    waits = {path: round(wait_fraction(path, configs["held"], options), 4) for path in PATHS}
    ray.shutdown()
    summary = summarize(runs, waits)
    report = {
        "options": asdict(options) | {"out": options.out.name},
        "provenance": asdict(collect(device_fingerprint())) | {"ray": ray.__version__},
        "goals": {"ratio": GOAL_RATIO, "wait_fraction": GOAL_WAIT},
        "summary": summary,
        "runs": [asdict(found) for found in runs],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
