import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest
import torch

from elastic.batch import Batch
from elastic.data.feed import FeedConfig, LocalFeed
from elastic.data.pipeline import RayFeed, open_feed
from elastic.errors import ConfigError, DataError

from .conftest import feed_config, two_streams

pytestmark = [
    pytest.mark.ray,
    # Ray Data copies its own context attribute by attribute, its deprecated ones included.
    pytest.mark.filterwarnings(r"ignore:.*deprecated:DeprecationWarning:ray\."),
]


@pytest.fixture
def config(damaged: str) -> FeedConfig:
    """Two streams with broken images, adaptive, read as they go."""
    return feed_config(two_streams(damaged, hold_decoded_bytes=0), is_adaptive=True, weights={1: (1.0, 3.0)})


def assert_equal(first: Batch, second: Batch) -> None:
    torch.testing.assert_close(asdict(first), asdict(second), rtol=0, atol=0)


def open_all(config: FeedConfig, world: int) -> list[RayFeed]:
    """The feeds of all workers, in threads of one process."""
    name: list[str] = []
    named = threading.Event()

    def broadcast(rank: int) -> Callable[[str], str]:
        def call(value: str) -> str:
            if rank == 0:
                name.append(value)
                named.set()
            assert named.wait(timeout=60)
            return name[0]

        return call

    return [open_feed(config, rank, world, broadcast(rank)) for rank in range(world)]


def test_ray_executes_the_same_plan_as_one_process(local_ray: None, config: FeedConfig):
    feed, local = open_feed(config), LocalFeed(config)
    found = feed.batches(3, 20)
    for step, expected in enumerate(local.batches(3, 20), start=3):
        if step == 8:
            # Segment 2 begins at step 10; the pool waits for its weights, and only for them.
            for each in (feed, local):
                each.set_weights(2, (5.0, 1.0))
                each.set_weights(3, (1.0, 1.0))
                each.set_weights(4, (1.0, 1.0))
        assert_equal(next(found), expected)
    assert next(found, None) is None
    assert feed.weights == local.weights
    assert (feed.num_images, feed.num_broken_images) == (local.num_images, local.num_broken_images)
    assert feed.num_broken_images > 0
    with pytest.raises(ConfigError, match="must be 5, the next one"):
        feed.set_weights(9, (1.0, 1.0))
    feed.close()
    feed.close()


def test_workers_get_their_own_parts_in_order(local_ray: None, config: FeedConfig):
    config = replace(config, is_adaptive=False, data=replace(config.data, hold_decoded_bytes=2**30))
    feeds = open_all(config, world=2)
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda feed: list(feed.batches(0, 40)), feeds))
    for rank in (0, 1):
        for batch, expected in zip(found[rank], LocalFeed(config, rank, 2).batches(0, 40), strict=True):
            assert_equal(batch, expected)
    for feed in feeds:
        feed.close()


def test_a_feed_can_be_closed_while_the_pool_waits_and_stopped_early(local_ray: None, config: FeedConfig):
    feed = open_feed(config)
    batches = feed.batches(0, 1000)
    assert len(next(batches).images) > 0
    # Nobody will set the weights of segment 2, for which the pool waits by now.
    feed.close()
    assert next(batches, None) is None


def test_an_error_in_the_pool_arrives_as_itself(local_ray: None, config: FeedConfig):
    config = replace(config, is_adaptive=False, data=replace(config.data, max_bad_fraction=0.001))
    feed = open_feed(config)
    with pytest.raises(DataError, match=r"images are broken, above max_bad_fraction=0.001"):
        for _ in feed.batches(0, 200):
            pass
    feed.close()
    too_many = replace(config, data=replace(config.data, hold_decoded_bytes=2**30))
    with pytest.raises(DataError, match="5 of 36 images are broken"):
        open_feed(too_many)
