import pytest
import torch

from elastic.train.window import Window, num_images

CPU = torch.device("cpu")


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def slow_batches(clock, make_batch, wait_s):
    while True:
        clock.now += wait_s
        yield make_batch()


def take_step(window, clock, batches, work_s, loss):
    window.fetch(batches, 1, CPU)
    clock.now += work_s
    window.add({"loss": torch.tensor(loss)})


def test_a_record_says_how_long_a_step_took_and_what_share_was_waiting(make_batch):
    clock = Clock()
    window, batches = Window(num_images, clock=clock), slow_batches(clock, make_batch, wait_s=1.0)
    take_step(window, clock, batches, work_s=3.0, loss=2.0)
    take_step(window, clock, batches, work_s=3.0, loss=4.0)
    record = window.close()
    assert record["loss"] == 3.0
    assert record["step_s"] == pytest.approx(4.0)
    assert record["data_wait_fraction"] == pytest.approx(0.25)
    assert record["images_per_s"] == pytest.approx(2 * 8 / 8.0)


def test_a_closed_window_starts_over(make_batch):
    clock = Clock()
    window, batches = Window(num_images, clock=clock), slow_batches(clock, make_batch, wait_s=1.0)
    take_step(window, clock, batches, work_s=9.0, loss=2.0)
    window.close()
    take_step(window, clock, batches, work_s=0.0, loss=5.0)
    record = window.close(extra=7.0)
    assert (record["loss"], record["step_s"], record["data_wait_fraction"]) == (5.0, 1.0, 1.0)
    assert record["extra"] == 7.0


def test_what_happens_between_windows_is_no_part_of_a_step(make_batch):
    clock = Clock()
    window, batches = Window(num_images, clock=clock), slow_batches(clock, make_batch, wait_s=0.0)
    take_step(window, clock, batches, work_s=2.0, loss=1.0)
    window.close()
    clock.now += 50.0  # a checkpoint is written
    take_step(window, clock, batches, work_s=2.0, loss=1.0)
    assert window.close()["step_s"] == pytest.approx(2.0)


def test_fetching_several_batches_counts_all_their_images(make_batch):
    clock = Clock()
    window = Window(num_images, clock=clock)
    fetched = window.fetch(slow_batches(clock, make_batch, wait_s=1.0), 3, CPU)
    window.add({"loss": torch.tensor(1.0)})
    assert len(fetched) == 3
    assert window.close()["images_per_s"] == pytest.approx(3 * 8 / 3.0)
