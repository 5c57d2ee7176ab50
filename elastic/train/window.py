"""What happened on the workers since the last record: means of the terms, speed, and time spent waiting for data."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from elastic.batch import Batch
from elastic.train.metrics import MetricMeans

BatchT = TypeVar("BatchT", Batch, Tensor)


def num_images(batch: Batch) -> int:
    """What the speed of training an encoder is counted in."""
    return len(batch.images)


class Window(Generic[BatchT]):
    """The steps between two records on one worker.

    Nothing here waits for the device or for other workers until `close`, so an unrecorded step costs a few
    additions.
    """

    def __init__(
        self,
        size: Callable[[BatchT], int],
        unit: str = "images",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`size` says how many of `unit` a batch has; they make the record's `<unit>_per_s`."""
        self._size, self._unit = size, unit
        self._clock = clock
        self._means = MetricMeans()
        self._open()

    def _open(self) -> None:
        self._start = self._clock()
        self._wait_s = 0.0
        self._num_steps = 0
        self._num_items = 0

    def fetch(self, batches: Iterator[BatchT], count: int, device: torch.device) -> list[BatchT]:
        """The next `count` batches, on the device; the time until they are there counts as waiting for data."""
        start = self._clock()
        if self._num_steps == 0:  # what happens between windows, such as saving, is no part of a step
            self._start = start
        fetched = list(islice(batches, count))
        assert len(fetched) == count, "the feed ended before the run did"
        self._wait_s += self._clock() - start
        self._num_items += sum(self._size(batch) for batch in fetched)
        return [batch.to(device) for batch in fetched]

    def add(self, report: dict[str, Tensor]) -> None:
        """Take in one finished step."""
        self._means.add(report)
        self._num_steps += 1

    def close(self, **extra: float) -> dict[str, float]:
        """The record of the window, averaged over workers, and a new window. Every worker calls it together.

        `extra` scalars of this worker are averaged too. Waits for the device.
        """
        names, means = self._means.take()
        terms = means.tolist()  # waits for the device, so that the elapsed time covers what was queued on it
        elapsed_s = self._clock() - self._start
        mine = dict(zip(names, terms, strict=True)) | extra
        speed = f"{self._unit}_per_s"
        mine |= {
            "step_s": elapsed_s / self._num_steps,
            speed: self._num_items / elapsed_s,
            "data_wait_fraction": self._wait_s / elapsed_s,
        }
        record = mean_over_workers(mine)
        record[speed] *= num_workers()
        self._open()
        return record


def num_workers() -> int:
    """Size of the default process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This worker's number in the default process group; 0 without one."""
    return dist.get_rank() if dist.is_initialized() else 0


def mean_over_workers(values: dict[str, float]) -> dict[str, float]:
    """The mean of every value over the workers, each of which calls this with the same names."""
    if num_workers() == 1:
        return dict(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    stacked = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(stacked)
    return dict(zip(values, (stacked / num_workers()).tolist(), strict=True))
