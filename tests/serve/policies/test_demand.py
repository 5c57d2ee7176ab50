import math

import pytest

from elastic.serve.batching import Work
from elastic.serve.policies.demand import Demand


def arrival(at_ms: float, budget_ms: float = 20.0) -> Work:
    return Work(id=0, modality="image", deadline_ms=at_ms + budget_ms, budget_ms=budget_ms, arrived_ms=at_ms)


def test_nothing_has_arrived_yet() -> None:
    assert Demand().rate(5.0) == 0.0
    assert math.isinf(Demand().budget_ms)


def test_a_steady_stream_is_measured_as_what_it_is() -> None:
    demand = Demand()
    demand.observe(arrival(float(at_ms)) for at_ms in range(0, 5000, 2))
    # Just after an arrival; the mean over the gap is 0.5.
    assert demand.rate(5000.0) == pytest.approx(0.5, rel=0.01)


def test_a_stream_that_stops_is_forgotten_by_e_in_the_memory() -> None:
    demand = Demand()
    demand.observe(arrival(float(at_ms)) for at_ms in range(0, 5000, 2))
    assert demand.rate(5500.0) == pytest.approx(demand.rate(5000.0) / math.e)


def test_tight_budgets_bind() -> None:
    demand = Demand()
    demand.observe([arrival(0.0, 10.0), arrival(0.0, 30.0)])
    assert demand.budget_ms == pytest.approx(15.0)  # the harmonic mean


def test_arrivals_out_of_order_count_as_of_the_latest() -> None:
    demand = Demand()
    demand.observe([arrival(10.0), arrival(5.0)])
    assert demand.rate(10.0) == pytest.approx(2 / demand.memory_ms)
