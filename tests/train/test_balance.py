"""Weights that follow the loss: golden values, timing, and equality over workers and interruptions."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from elastic.batch import Batch
from elastic.data.catalog import Catalog
from elastic.data.config import DataConfig, StreamConfig
from elastic.data.feed import Feed
from elastic.data.plan import shares
from elastic.data.weights import Weights
from elastic.errors import ConfigError
from elastic.train.balance import Balancer, Balancing, balanced_shares

from ..workers import TwoWorkers

CPU = torch.device("cpu")
TERM = "udon/teacher_ce@raw"
EVEN = (1 / 3, 1 / 3, 1 / 3)


class FakeFeed(Feed):
    """Remembers which weights were set."""

    def __init__(self, weights: dict[int, Weights] | None = None) -> None:
        self.set: dict[int, Weights] = dict(weights or {})

    def set_weights(self, segment: int, weights: Weights) -> None:
        assert segment not in self.set
        self.set[segment] = weights

    @property
    def weights(self) -> dict[int, Weights]:
        return dict(self.set)

    @property
    def catalog(self) -> Catalog:
        raise AssertionError("not read")

    def batches(self, start_step: int, num_steps: int) -> Iterator[Batch]:
        raise AssertionError("not read")

    @property
    def num_images(self) -> int:
        return 0

    @property
    def num_broken_images(self) -> int:
        return 0

    def close(self) -> None:
        pass


def data(*weights: float, segment_steps: int = 100, prefetch_steps: int = 1) -> DataConfig:
    streams = tuple(StreamConfig(name=name, weight=weight) for name, weight in zip("abcd", weights, strict=False))
    return DataConfig(streams=streams, segment_steps=segment_steps, prefetch_steps=prefetch_steps)


def report(*values: float) -> dict[str, torch.Tensor]:
    """What a step says, with a value for each granularity."""
    found = {f"{TERM}/{name}": torch.tensor(value) for name, value in zip("SML", values, strict=False)}
    noise = {"udon/teacher_ce/S": torch.tensor(99.0), f"{TERM}@16/S": torch.tensor(99.0), "loss": torch.tensor(9.0)}
    return found | noise


def open_balancer(feed: Feed, config: DataConfig, balanced: tuple[int, ...] = (0, 1, 2), floor: float = 0.0):
    return Balancer(Balancing(floor=floor), config, balanced, feed, CPU)


def test_shares_have_their_golden_values():
    first = balanced_shares((4, 1, 3), EVEN, 0)
    assert first == (0.5, 0.125, 0.375) and shares(first, 1000) == (500, 125, 375)
    second = balanced_shares((3, None, 1), first, 0)
    assert second == pytest.approx((0.75 / 1.125, 0.125 / 1.125, 0.25 / 1.125))
    assert shares(second, 1000) == (666, 111, 223)
    assert shares(balanced_shares((2, 2, 2), first, 0), 100) == (33, 33, 34)


def test_shares_are_proportional_to_the_losses_whatever_they_were_before():
    losses = torch.rand(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    found = balanced_shares(losses, [1 / 12] * 12, 0)
    assert [share / loss for share, loss in zip(found, losses, strict=True)] == pytest.approx([1 / sum(losses)] * 12)
    assert found == balanced_shares(losses, [1.0] + [0.0] * 11, 0)


def test_a_floor_lifts_every_share_and_keeps_their_order():
    found = balanced_shares((0, 1, 9), EVEN, 0.1)
    assert found == pytest.approx((0.1, 0.1 + 0.7 * 0.1, 0.1 + 0.7 * 0.9)) and sum(found) == pytest.approx(1)


@pytest.mark.parametrize("losses", [(None, None, None), (0.0, 0.0, 0.0), (0.0, None, 0.0)])
def test_without_anything_to_go_by_shares_stay(losses: tuple[float | None, ...]):
    assert balanced_shares(losses, (0.2, 0.3, 0.5), 0) == (0.2, 0.3, 0.5)


def test_a_negative_loss_is_refused():
    with pytest.raises(ConfigError, match=r"balancing.term=-1: must not be negative"):
        balanced_shares((2, -1, 3), EVEN, 0)


def test_weights_are_set_once_a_segment_and_before_it_begins():
    feed = FakeFeed()
    balancer = open_balancer(feed, data(1, 1, 1, segment_steps=100, prefetch_steps=1))
    for step in range(1, 301):
        balancer.add(step % 3, report(1.0))
        balancer.update(step)
        # One step ahead is held ready, and two blocks of up to 16 steps are on their way.
        assert len(feed.set) == (step + 33) // 100
    assert list(feed.set) == [1, 2, 3]


@pytest.mark.parametrize(("segment_steps", "due"), [(1, [1, 2, 3, 4]), (4, [2, 6]), (5, [3, 8])])
def test_short_segments_are_set_at_their_middle(segment_steps: int, due: list[int]):
    feed = FakeFeed()
    balancer, seen = open_balancer(feed, data(1, segment_steps=segment_steps), balanced=(0,)), []
    for step in range(1, max(due) + 1):
        balancer.update(step)
        if len(feed.set) > len(seen):
            seen.append(step)
    assert seen == due


def test_a_window_is_the_steps_since_the_last_weights():
    feed = FakeFeed()
    balancer = open_balancer(feed, data(1, 1, segment_steps=4), balanced=(0, 1))
    for step, (stream, loss) in enumerate([(0, 8.0), (1, 8.0), (0, 1.0), (1, 2.0), (1, 4.0), (0, 1.0)], start=1):
        balancer.add(stream, report(loss))
        balancer.update(step)
    assert feed.set == {1: (0.5, 0.5), 2: (0.25, 0.75)}


def test_a_step_counts_as_the_mean_over_its_granularities():
    feed = FakeFeed()
    balancer = open_balancer(feed, data(1, 1, segment_steps=4), balanced=(0, 1))
    balancer.add(0, report(1.0, 2.0, 6.0))
    balancer.add(1, report(1.0))
    balancer.update(2)
    assert feed.set == {1: (0.75, 0.25)}


def test_streams_that_do_not_report_the_term_keep_their_part_of_the_steps():
    feed = FakeFeed()
    balancer = open_balancer(feed, data(1, 4, 1, 2, segment_steps=8), balanced=(0, 2, 3))
    assert sum(balancer.close().values()) == 1
    for stream, loss in ((0, 1.0), (2, 1.0), (3, 6.0)):
        balancer.add(stream, report(loss))
    balancer.add(1, {"captions/nce/S": torch.tensor(5.0)})
    balancer.update(4)
    assert feed.set[1] == pytest.approx((0.5 / 8, 0.5, 0.5 / 8, 0.5 * 6 / 8))


def test_a_stream_that_was_not_seen_keeps_its_weight():
    feed = FakeFeed()
    balancer = open_balancer(feed, data(2, 1, 1, segment_steps=8))
    for stream, loss in ((0, 3.0), (1, 1.0)):
        balancer.add(stream, report(loss))
    balancer.update(4)
    assert feed.set[1] == pytest.approx((0.75 / 1.25, 0.25 / 1.25, 0.25 / 1.25))


def test_a_loss_that_is_not_finite_does_not_count():
    feed = FakeFeed()
    balancer = open_balancer(feed, data(1, 1, segment_steps=8), balanced=(0, 1))
    for loss in (3.0, float("nan"), float("inf")):
        balancer.add(0, report(loss))
    balancer.add(1, report(1.0))
    balancer.update(4)
    assert feed.set == {1: (0.75, 0.25)}


def test_a_term_that_is_not_reported_is_refused_at_once_with_those_that_are():
    balancer = open_balancer(FakeFeed(), data(1, 1), balanced=(0, 1))
    with pytest.raises(ConfigError, match=r"is not reported; \['udon/teacher_ce', 'udon/teacher_ce@raw@16'\] are"):
        balancer.add(0, report())


def test_the_record_names_the_weights_as_last_set():
    balancer = open_balancer(FakeFeed(), data(1, 3, segment_steps=8), balanced=(0, 1))
    assert balancer.close() == {"weights/a": 0.25, "weights/b": 0.75}
    balancer.add(0, report(1.0))
    balancer.add(1, report(1.0))
    balancer.update(4)
    assert balancer.close() == {"weights/a": 0.5, "weights/b": 0.5}


def test_an_interrupted_window_goes_on_where_it_was():
    steps = [(step % 3, 0.1 + step * 0.7 % 1) for step in range(20)]
    config, feeds = data(1, 1, 1, segment_steps=8), (FakeFeed(), FakeFeed())
    straight, cut = (open_balancer(feed, config) for feed in feeds)
    for step, (stream, loss) in enumerate(steps, start=1):
        if step == 7:  # one set of weights is out, and part of the next window is summed up
            straight.close()
            cut.close()
            saved, cut = cut.state_dict(), open_balancer(feeds[1], config)
            cut.load_state_dict(saved)
        for balancer in (straight, cut):
            balancer.add(stream, report(loss))
            balancer.update(step)
    assert feeds[0].set == feeds[1].set and list(feeds[0].set) == [1, 2, 3]
    assert len(set(feeds[0].set.values())) == 3


@pytest.mark.parametrize("term", ["", "udon", "/ce", "udon/"])
def test_a_term_without_its_objective_is_refused(term: str):
    with pytest.raises(ConfigError, match=r"balancing\.term"):
        Balancing(term=term)


@pytest.mark.parametrize("floor", [-0.1, 1.0])
def test_a_floor_outside_its_range_is_refused(floor: float):
    with pytest.raises(ConfigError, match=r"balancing\.floor"):
        Balancing(floor=floor)


LOSSES = [((1.0, 3.0), 0), ((2.0, 8.0), 1), ((float("nan"), 2.0), 0), ((6.0, 4.0), 2)]
"""What two workers report of the same four steps, and the stream of each."""


def work(rank: int) -> dict[str, Any]:
    """The weights after a worker's own losses were summed up with the other's."""
    feed = FakeFeed()
    balancer = open_balancer(feed, data(1, 1, 1, segment_steps=8))
    for step, (losses, stream) in enumerate(LOSSES, start=1):
        balancer.add(stream, report(losses[rank]))
        balancer.update(step)
        if step == 2:
            balancer.close()
    return {"weights": list(balancer.close().values()), "set": list(feed.set)}


def test_workers_agree_on_the_mean_of_what_each_of_them_saw(two_workers: TwoWorkers):
    first, second = two_workers.run(work)
    assert first["weights"] == second["weights"] == pytest.approx([2 / 12, 5 / 12, 5 / 12])
    assert (first["set"], second["set"]) == ([1], [])  # one worker sets them for all
