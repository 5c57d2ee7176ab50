"""A training step executes as many operations as the count of its passes says."""

import pytest

from benchmarks.step_cost import CASES, GOAL, operations, predicted, step_of, unit_of


@pytest.mark.parametrize("name", CASES)
def test_a_step_costs_what_its_passes_cost(name: str):
    unit = operations(unit_of(4))
    found = operations(step_of(CASES[name], 4)) / unit
    assert found == pytest.approx(predicted(CASES[name]), rel=GOAL)
