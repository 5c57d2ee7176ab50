"""The example objective of the contributor's guide works as it stands there, from its own file."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from elastic.data.feed import LocalFeed
from elastic.recipes.find import find_recipe
from elastic.train.preparation import check_data, dimensions, feed_config, make_tokenizer
from elastic.train.state import TrainState
from elastic.train.step import train_step

GUIDE = Path(__file__).parents[1] / "CONTRIBUTING.md"
MOST_LINES = 50
"""Forty of code, and what a file has to have around it."""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= MOST_LINES
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return importlib.import_module("mine")


def test_its_maths_is_that_of_the_paper(mine: ModuleType):
    assert mine.potential(torch.ones(4, 3), 2.0).item() == pytest.approx(0)
    assert mine.potential(torch.tensor([[1.0, 0], [-5, 0]]), 2.0).item() == pytest.approx(-2 * 2**2)


def test_a_recipe_trains_it_at_every_width_and_submodel(mine: ModuleType):
    config = find_recipe("mine:spread")()
    tokenizer = make_tokenizer(config, catalog := check_data(config))
    feed = LocalFeed(feed_config(config, tokenizer, {}))
    state = TrainState(config, dimensions(config, catalog), torch.device("cpu"))
    submodels = (state.space.full, state.space.smallest)
    reports = [train_step(state, [batch], submodels, rank=0) for batch in feed.batches(0, 3)]
    names = {f"spread/potential{width}/{size}" for width in ("", "@8", "@16") for size in ("S", "XL")}
    assert names <= reports[-1].keys()
    assert all(report["spread/potential/XL"] < 0 for report in reports)
