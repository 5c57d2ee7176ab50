"""Runs without Ray, and what is compared of two runs."""

from collections.abc import Callable
from pathlib import Path

import torch

from elastic.checkpoint import TOKENIZER
from elastic.data.feed import LocalFeed
from elastic.data.tokenizer import Tokenizer
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.train.config import TrainConfig
from elastic.train.loop import run
from elastic.train.metrics import read_metrics
from elastic.train.preparation import check_data, feed_config, make_tokenizer
from elastic.train.record import Origin, write_record


def start(config: TrainConfig, run_dir: Path) -> None:
    """Write what a run needs before its first step."""
    write_record(run_dir, config, Origin(recipe="tiny"), collect(device_fingerprint()))
    tokenizer = make_tokenizer(config, check_data(config))
    assert tokenizer is not None
    tokenizer.save(run_dir / TOKENIZER)


def train(
    config: TrainConfig, run_dir: Path, feed_class: Callable[..., LocalFeed] = LocalFeed, *feed_arguments: object
) -> int:
    """Start the run or go on with it."""
    if not run_dir.exists():
        start(config, run_dir)
    tokenizer = Tokenizer.load(run_dir / TOKENIZER)
    return run(
        config,
        run_dir,
        torch.device("cpu"),
        lambda weights: feed_class(feed_config(config, tokenizer, weights), *feed_arguments),
    )


def losses(run_dir: Path) -> list[dict[str, float]]:
    """The run's records without what the clock says."""
    timing = {"step_s", "images_per_s", "data_wait_fraction"}
    return [{name: value for name, value in record.items() if name not in timing} for record in read_metrics(run_dir)]
