"""The benchmark of traces runs on any model and reports both ways; its numbers are not tested."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import traced
from elastic.checkpoint import Manifest, save_model
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder


def test_it_measures_every_granularity_both_ways_and_that_they_agree(tmp_path: Path) -> None:
    vision = VisionConfig(image_size=16, patch_size=8, width=24, depth=2, num_heads=3)
    encoder = Encoder(EncoderConfig(vision=vision, ffn_fractions=(0.5, 1.0), embed_dims=(4, 8))).eval()
    save_model(tmp_path / "run", encoder, Manifest(encoder=encoder.config, preprocess=Preprocess(image_size=16)))
    threads = torch.get_num_threads()
    traced.main(traced.Options(run=tmp_path / "run", batch_sizes=(1, 2), rounds=2, out=tmp_path / "out.json"))
    torch.set_num_threads(threads)
    report = json.loads((tmp_path / "out.json").read_text())
    cells = {(row["where"], row["submodel"], row["batch_size"]) for row in report["rows"]}
    assert len(cells) == len(report["rows"]) == 2 * len(encoder.space.granularities) * 2
    assert report["max_difference"] < 1e-5


def test_the_ratio_is_of_medians_with_an_interval_around_it() -> None:
    found = {"alone": {("S", 1, "python"): [0.004, 0.002, 0.003], ("S", 1, "trace"): [0.001, 0.0015, 0.009]}}
    (row,) = traced.summarise(found)
    assert (row["python_ms"], row["trace_ms"], row["ratio"]) == pytest.approx((3.0, 1.5, 0.5))
    assert row["low"] <= row["ratio"] <= row["high"]


def test_the_busy_thread_takes_the_lock_and_ends_with_its_block() -> None:
    def longest_step_s() -> float:
        marks = []
        until_s = time.monotonic() + 0.2
        while (now_s := time.monotonic()) < until_s:
            marks.append(now_s)
        return float(np.diff(marks).max())

    with traced.busy_thread():
        assert longest_step_s() > traced.WORK_S / 2
