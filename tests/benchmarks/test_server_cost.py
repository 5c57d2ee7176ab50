"""The pieces of the server's cost: one call for everyone, a closed loop, CPU of whole trees, ratios within rounds."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.server_cost.load import Answer, calls_of, check, closed_loop
from benchmarks.server_cost.report import GOAL_P50_MS, compared, summarise, taken_apart
from benchmarks.server_cost.workload import BUNDLED, TOP_QUALITY, Workload, draw_images, write_run
from elastic.serve.config import ServeConfig
from elastic.serve.resident import ResidentModel
from elastic.serve.served import load_fronts
from elastic.submodel import Slo


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    written = write_run(replace(BUNDLED, max_batch_size=2), tmp_path_factory.mktemp("cost") / "run")
    torch.set_num_threads(threads)
    return written


def test_elastic_serve_takes_the_run_and_its_top_quality_fixes_the_largest_submodel(run: Path):
    model = ResidentModel.load(run)
    front = load_fronts(model, ServeConfig(run=run))["image"]
    floor = front.floor(Slo(latency_ms=1.0, min_quality=TOP_QUALITY))
    assert floor is not None and front.levels[floor].submodel == model.encoder.space.full


def test_the_common_call_embeds_what_is_drawn(run: Path):
    threads = torch.get_num_threads()
    workload = Workload(run)
    torch.set_num_threads(threads)
    embeddings = workload.embed([workload.prepare(image) for image in draw_images(64, 3)])
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert len({row.tobytes() for row in embeddings}) == 3


def test_a_closed_loop_sends_every_request_once_with_no_more_under_way_than_callers():
    under_way, most, sent = 0, 0, 0

    async def ask() -> Answer:
        nonlocal under_way, most, sent
        under_way, sent = under_way + 1, sent + 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return Answer()

    found = asyncio.run(closed_loop(ask, 20, 4))
    assert (sent, len(found.answers), len(found.latencies_ms), most) == (20, 20, 20, 4)


def test_calls_of_several_images_hold_all_of_them_equally_often():
    assert calls_of([1, 2, 3], 2) == [[1, 2], [2, 3], [3, 1]]
    assert calls_of([1, 2], 3) == [[1, 2, 1], [2, 1, 2]]


@pytest.mark.parametrize("wrong", [[[0.6, 0.8]], [[0.6, 0.8], [0.6, 0.9]], []])
def test_an_answer_is_checked_for_every_image(wrong: list[list[float]]) -> None:
    def answer(embeddings: list[list[float]]) -> Answer:
        return Answer(None, [np.array(embedding, "<f4").tobytes() for embedding in embeddings], 2)

    async def ask() -> Answer:
        return answer(wrong)

    check(answer([[0.6, 0.8], [1.0, 0.0]]))
    with pytest.raises((AssertionError, ValueError)):
        asyncio.run(closed_loop(ask, 1, 1))


def a_round(bare_ms: float, served_ms: float) -> dict[str, dict[str, Any]]:
    """Two calls each; the server needs 1 ms to prepare, 2 to compute, 0.5 to answer."""
    bare = {
        "latencies_ms": [bare_ms] * 2,
        "prepare_ms": [1.0] * 2,
        "paused_ms": [bare_ms] * 2,
        "cpu_ms": {"1": bare_ms},
    }
    timings = {"prepare_ms": [1.0] * 2, "queue_ms": [0.0] * 2, "compute_ms": [2.0] * 2, "total_ms": [3.5] * 2}
    served = timings | {
        "latencies_ms": [served_ms] * 2,
        "nothing_ms": [0.7],
        "nothing_direct_ms": [0.5],
        "per_s": {"32": 1000 / served_ms, "64": 900 / served_ms},
        "full_calls_per_s": {"2": 1800 / served_ms, "4": 1900 / served_ms},
        "cpu_ms": {"1": 5.0, "32": 4.0, "64": 4.0},
        "client_cpu_ms": {"1": 1.0, "32": 1.0, "64": 1.0},
    }
    return {"bare": bare | {"per_s": {"1": 500 / bare_ms, "8": 1000 / bare_ms}}, "elastic serve": served}


def test_differences_and_ratios_are_taken_within_a_round():
    # A machine that is half as fast in one round: differences of medians over rounds would mix its rounds.
    summary = summarise([a_round(2.0, 4.0), a_round(20.0, 25.0), a_round(2.0, 4.0)])
    ours = summary["elastic serve"]
    assert ours["p50_minus_bare_ms"] == pytest.approx((2.0, 2.0, 5.0))
    assert (ours["best_at"], summary["bare"]["best_at"]) == ("32", "8")
    assert ours["over_bare"] == pytest.approx((0.5, 0.5, 0.8))
    assert (ours["full_calls_at"], ours["full_calls_over_bare"]) == ("4", pytest.approx((0.95, 0.95, 1.52)))
    assert summary["parts"]["explanation and reply"] == pytest.approx(0.5)


def test_the_table_says_which_goal_is_missed():
    summary = summarise([a_round(2.0, 2.0 + GOAL_P50_MS)])
    assert taken_apart("model", summary).row_count == len(summary["parts"])
    caption = str(compared("model", summary).caption)
    assert "ms of bare: met" in caption and "0.9 of bare: missed; in full calls: met." in caption


def test_a_goal_that_some_rounds_miss_is_met_in_the_median_only():
    summary = summarise([a_round(2.0, 4.0), a_round(2.0, 5.0), a_round(2.0, 4.0)])
    assert "ms of bare: met in the median; " in str(compared("model", summary).caption)
