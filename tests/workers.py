"""Two processes that train as one, shared by all tests that need them.

They are started once, because a process takes seconds to load torch and the package. What they run is a function of
a test module; each call is a process group of its own.
"""

import io
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

WORLD_SIZE = 2


class TwoWorkers:
    """Started at the first call."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._num_calls = folder, 0
        self._processes = [ProcessPoolExecutor(1, get_context("spawn")) for _ in range(WORLD_SIZE)]

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `function(rank, *arguments)` returned in each."""
        self._num_calls += 1
        store = str(self._folder / str(self._num_calls))
        running = [
            process.submit(work, rank, store, function, arguments) for rank, process in enumerate(self._processes)
        ]
        for found in as_completed(running, timeout=280):
            found.result()  # raises the first error, not what it did to the other worker
        return [torch.load(io.BytesIO(found.result())) for found in running]

    def close(self) -> None:
        for process in self._processes:
            process.shutdown()


def work(rank: int, store: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    """One process: join the other, run the function, leave."""
    torch.set_num_threads(1)
    joined = dist.FileStore(store, WORLD_SIZE)
    dist.init_process_group("gloo", store=joined, rank=rank, world_size=WORLD_SIZE, timeout=timedelta(seconds=100))
    found = io.BytesIO()
    try:
        torch.save(function(rank, *arguments), found)
    finally:
        dist.destroy_process_group()
    return found.getvalue()
