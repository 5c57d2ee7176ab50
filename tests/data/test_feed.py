import logging
from dataclasses import asdict, replace

import pytest
import torch

from elastic.batch import Batch
from elastic.data import feed as feed_module
from elastic.data.config import DataConfig
from elastic.data.feed import BrokenImages, FeedConfig, LocalFeed, open_streams
from elastic.errors import ConfigError, DataError
from elastic.model.config import Preprocess

from .conftest import feed_config, stream, two_streams


def equal(first: Batch, second: Batch) -> bool:
    return same(*(asdict(batch) for batch in (first, second)))


def same(first: object, second: object) -> bool:
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return torch.equal(first, second)
    return first == second


def test_a_batch_says_what_each_view_is(shapes: str):
    feed = LocalFeed(feed_config(two_streams(shapes)))
    for batch in feed.batches(0, 12):
        views = len(batch.images) // len(set(batch.row_ids.tolist()))
        assert batch.images.shape[1:] == (3, 8, 8)
        assert batch.row_ids.tolist() == batch.row_ids[::views].repeat_interleave(views).tolist()
        assert batch.labels is not None and batch.caption_ids is not None
        # Three rows a class, in class order.
        assert batch.labels.tolist() == (batch.row_ids // 3).tolist() == batch.caption_ids.tolist()
        assert batch.captions is not None
        assert ((batch.captions.tokens != 0) == batch.captions.mask).all()
        same_text = batch.captions.index[:, None] == batch.captions.index
        assert torch.equal(same_text, batch.labels[:, None] == batch.labels)


def test_starting_anywhere_is_what_an_uninterrupted_run_would_have_seen(shapes: str):
    config = feed_config(two_streams(shapes))
    uninterrupted = list(LocalFeed(config).batches(0, 12))
    resumed = list(LocalFeed(config).batches(7, 5))
    assert all(equal(first, second) for first, second in zip(uninterrupted[7:], resumed, strict=True))


def test_workers_share_out_the_same_batch(shapes: str):
    config = feed_config(two_streams(shapes))
    alone = LocalFeed(config).batches(0, 6)
    first, second = (LocalFeed(config, rank, 2).batches(0, 6) for rank in range(2))
    for whole, *parts in zip(alone, first, second, strict=True):
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.row_ids, torch.cat([part.row_ids for part in parts]))


def test_holding_images_changes_nothing(shapes: str):
    data = two_streams(shapes)
    held, read = (LocalFeed(feed_config(replace(data, hold_decoded_bytes=size))) for size in (2**30, 0))
    assert all(map(equal, held.batches(0, 8), read.batches(0, 8)))


def test_without_a_tokenizer_there_is_no_text(shapes: str):
    (batch,) = LocalFeed(feed_config(two_streams(shapes), tokenizer=None)).batches(0, 1)
    assert batch.present == {"images", "row_ids", "domains", "labels", "caption_ids"}


def test_pixels_are_normalised(shapes: str):
    config = feed_config(two_streams(shapes))
    shifted = replace(config, preprocess=Preprocess(image_size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    (centred,), (raw,) = LocalFeed(config).batches(0, 1), LocalFeed(shifted).batches(0, 1)
    assert (centred.images - (raw.images - 0.5) / 0.5).abs().max() < 1e-6


def test_weights_hold_from_their_segment_on(shapes: str):
    config = feed_config(two_streams(shapes), weights={1: (0.0, 1.0), 3: (1.0, 0.0)})
    sizes = [len(batch.images) for batch in LocalFeed(config).batches(5, 15)]
    # Segments of five steps; the shuffled stream has 12 views a batch, the balanced one 8.
    assert sizes == [12] * 10 + [8] * 5


def test_an_adaptive_feed_wants_weights_before_each_segment(shapes: str):
    feed = LocalFeed(feed_config(two_streams(shapes), is_adaptive=True))
    batches = feed.batches(0, 10)
    for _ in range(5):
        next(batches)
    feed.set_weights(1, (0.0, 1.0))
    assert len(next(batches).images) == 12
    assert feed.weights == {1: (0.0, 1.0)}
    with pytest.raises(ConfigError, match="set the weights of a segment before its first step"):
        list(feed.batches(10, 1))


def test_weights_cannot_be_set_in_a_feed_that_is_not_adaptive(shapes: str):
    with pytest.raises(ConfigError, match=r"feed\.is_adaptive"):
        LocalFeed(feed_config(two_streams(shapes))).set_weights(1, (1.0, 1.0))


def test_broken_images_are_counted_and_logged_now_and_then(
    damaged: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(feed_module, "LOG_EVERY_BROKEN", 10)
    feed = LocalFeed(feed_config(DataConfig(streams=(stream(damaged),), image_size=8, max_bad_fraction=1.0)))
    with caplog.at_level(logging.WARNING, logger="elastic.data.feed"):
        rows = [row for batch in feed.batches(0, 25) for row in batch.row_ids.tolist()]
    assert set(rows).isdisjoint({0, 2, 3, 4, 5})
    assert feed.num_images == len(rows) + feed.num_broken_images
    assert feed.num_broken_images > 20
    # One for the first, and one each time the count passes a ten.
    assert 2 < len(caplog.records) <= 1 + feed.num_broken_images // 10


def test_too_many_broken_images_end_a_run_before_it_starts(damaged: str):
    data = two_streams(damaged, max_bad_fraction=0.1)
    with pytest.raises(DataError, match=r"5 of 36 images are broken, above max_bad_fraction=0.1; `elastic data check`"):
        LocalFeed(feed_config(data))


def test_too_many_broken_images_end_a_run_that_reads_as_it_goes(damaged: str):
    data = two_streams(damaged, max_bad_fraction=0.1, hold_decoded_bytes=0)
    with pytest.raises(DataError, match="images are broken, above max_bad_fraction"):
        for _ in LocalFeed(feed_config(data)).batches(0, 1000):
            pass


def test_one_early_broken_image_does_not_end_a_run(shapes: str):
    counts = BrokenImages(two_streams(shapes, max_bad_fraction=0.01))
    feed = LocalFeed(feed_config(two_streams(shapes)))
    arrays = feed._executor.execute(feed._planner.shard(feed._planner.step(0, (1.0, 0.0)), 0, 1))
    counts.add(replace(arrays, num_read=8, num_broken=5))
    with pytest.raises(DataError, match="11 of 1000 images"):
        counts.add(replace(arrays, num_read=8, num_broken=6))


def test_the_bundled_set_feeds_a_step():
    config = FeedConfig(data=DataConfig(), seed=0, preprocess=Preprocess(image_size=32))
    (batch,) = LocalFeed(replace(config, data=replace(config.data, hold_decoded_bytes=0))).batches(123, 1)
    assert batch.images.shape == (256, 3, 32, 32)
    assert batch.images.std() > 0.3


def test_a_preprocess_of_another_size_is_refused():
    with pytest.raises(ConfigError, match=r"preprocess.image_size=64: must equal data.image_size=32"):
        FeedConfig(data=DataConfig(), seed=0, preprocess=Preprocess(image_size=64))


def test_streams_that_do_not_divide_among_workers_are_refused(shapes: str):
    with pytest.raises(ConfigError, match="must be a multiple of 3 workers"):
        open_streams(DataConfig(streams=(stream(shapes),)), world=3)


def test_closing_twice_is_safe(shapes: str):
    feed = LocalFeed(feed_config(two_streams(shapes)))
    feed.close()
    feed.close()
