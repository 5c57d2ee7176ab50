"""The dashboard asks only for metrics and labels that a server has, and explains every panel."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from elastic.serve.batching import Front, Level, Work
from elastic.serve.engine import RanBatch
from elastic.serve.observer import NOT_OURS, OUTCOMES
from elastic.serve.policy import Limit, Run
from elastic.serve.telemetry.metrics import Metrics
from elastic.submodel import Submodel

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "elastic.json"
ADDED_BY_PROMETHEUS = {"job"}


@pytest.fixture(scope="module")
def panels() -> list[dict[str, Any]]:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]


@pytest.fixture(scope="module")
def samples() -> dict[str, set[str]]:
    """The labels of every sample of a server that has run a batch."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    level = Level(Submodel((16, 16)), "S", (4.0,), {64: 0.3})
    metrics.batch_ran(RanBatch(Run(0, (Work(0, "image", 9.0, 9.0),), 4.0, Limit.NONE), Front((level,)).levels[0], 4.0))
    return {sample.name: set(sample.labels) for family in registry.collect() for sample in family.samples}


def expressions(panels: list[dict[str, Any]]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_metric_of_an_expression_exists_with_the_labels_that_it_is_asked_for(
    panels: list[dict[str, Any]], samples: dict[str, set[str]]
) -> None:
    for expression in expressions(panels):
        asked = re.findall(r"(elastic_\w+)(?:\{(.*?)\})?", expression)
        assert asked, expression
        for name, selector in asked:
            assert name in samples, expression
            matched = set(re.findall(r"(\w+)[=!]~?\"", selector))
            grouped = {label for group in re.findall(r"by \((.*?)\)", expression) for label in group.split(", ")}
            assert matched | grouped <= samples[name] | ADDED_BY_PROMETHEUS, expression


def test_every_legend_uses_a_label_that_its_expression_keeps(panels: list[dict[str, Any]]) -> None:
    for panel in panels:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                grouped = re.findall(r"by \((.*?)\)", target["expr"])
                assert not grouped or all(label in group for group in grouped), target


def test_attainment_leaves_out_the_outcomes_that_the_server_leaves_out(panels: list[dict[str, Any]]) -> None:
    excluded = {match for text in expressions(panels) for match in re.findall(r'outcome!~"(.*?)"', text)}
    assert [set(names.split("|")) for names in excluded] == [set(NOT_OURS)]
    named = {match for text in expressions(panels) for match in re.findall(r'outcome="(.*?)"', text)}
    assert named <= set(OUTCOMES)


def test_every_panel_has_a_unit_and_says_what_it_shows(panels: list[dict[str, Any]]) -> None:
    assert len(panels) >= 9
    assert all(panel["description"].endswith(".") for panel in panels)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in panels)


def test_panels_do_not_overlap_and_fit_the_grid(panels: list[dict[str, Any]]) -> None:
    cells: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in panels):
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells and place["x"] + place["w"] <= 24
        cells |= own
    assert len({panel["id"] for panel in panels}) == len(panels)
