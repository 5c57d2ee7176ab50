"""Numbers of experiments: intervals, pairing by seed, and that nothing is run twice."""

import json
import math
from pathlib import Path

import pytest

from experiments.harness import Metrics, Options, Runs, experiment, markdown


def runs(**arms: list[float]) -> Runs:
    return Runs(
        {
            "runs": [
                {"arm": arm, "seed": seed, "metrics": {"score": value}}
                for arm, values in arms.items()
                for seed, value in enumerate(values)
            ]
        }
    )


def test_interval_is_that_of_students_t():
    estimate = runs(a=[1.0, 2.0, 3.0]).mean("a", "score")
    assert estimate.mean == 2.0
    assert estimate.half_width == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)  # two degrees of freedom
    assert str(estimate) == "2.000 \u00b1 2.484"


def test_one_seed_has_no_interval_and_no_seed_no_mean():
    found = runs(a=[1.0])
    assert math.isnan(found.mean("a", "score").half_width)
    assert math.isnan(found.mean("a", "other").mean)


def test_differences_are_paired_by_seed():
    found = runs(a=[1.0, 5.0, 9.0], b=[0.5, 4.5, 8.5, 100.0])  # the fourth seed of b has no partner
    difference = found.difference("a", "b", "score")
    assert (difference.mean, difference.half_width) == (0.5, 0.0)


def test_a_table_has_a_row_for_each_row():
    assert markdown(["arm", "x"], [["a", 1]]) == "| arm | x |\n|---|---|\n| a | 1 |\n"


def seed_as_metric(seed: int, folder: Path) -> Metrics:
    assert folder.is_dir()
    return {"seed": float(seed)}


def test_what_was_measured_is_not_run_again(tmp_path):
    before = {"arm": "a", "seed": 0, "seconds": 1.0, "metrics": {"seed": -1.0}}
    (tmp_path / "results.json").write_text(json.dumps({"provenance": {}, "runs": [before]}))
    found = Runs(experiment(tmp_path, {"a": seed_as_metric}, Options(seeds=2, scratch=tmp_path / "scratch")))
    assert found.values("a", "seed") == {0: -1.0, 1: 1.0}
    assert json.loads((tmp_path / "results.json").read_text())["runs"] == found.results["runs"]
    assert not list((tmp_path / "scratch").rglob("*.*"))
