"""The plot shows every request, by what answered it or became of it."""

import numpy as np
import pytest

from elastic.bench.load import Outcome, Sample
from elastic.bench.plot import MAX_SUBMODELS, OTHERS, plot

from .conftest import answered, samples

REFUSED = Sample(90, 10.0, 20.0, 20.0, 22.5, Outcome.REFUSED, "Overloaded")
MIXED = samples(
    answered(0, 0.0, 4.0, granularity="XL", quality=0.6),
    answered(1, 100.0, 30.0, slo_ms=50.0, granularity="S", quality=0.3),
    REFUSED,
)


def test_every_request_is_a_point_at_its_intended_time():
    latency = plot("a load", MIXED).axes[0]
    points = {tuple(point) for line in latency.lines if line.get_linestyle() == "None" for point in line.get_xydata()}
    assert points == {(0.0, 4.0), (0.1, 30.0), (0.02, 2.5)}


def test_the_mix_is_ordered_by_quality_and_sums_to_one_where_there_were_requests():
    mix = plot("a load", MIXED).axes[1]
    _, labels = mix.get_legend_handles_labels()
    assert labels == ["S 33.3%", "XL 33.3%", "refused 33.3%"]
    heights = np.array([[bar.get_height() for bar in stack] for stack in mix.containers])
    assert set(heights.sum(axis=0)) == {0.0, 1.0}


def test_the_curve_of_an_objective_ends_at_the_share_that_was_answered():
    cdf = plot("a load", MIXED).axes[2]
    tops = [line.get_ydata()[-1] for line in cdf.lines if line.get_drawstyle() == "steps-post"]
    assert tops == [0.5, 1.0]
    assert [text.get_text() for text in cdf.get_legend().get_texts()] == ["10 ms: 50.0% met", "50 ms: 100.0% met"]


@pytest.mark.parametrize("count", [MAX_SUBMODELS, MAX_SUBMODELS + 2])
def test_many_submodels_share_a_colour(count: int):
    rows = [answered(n, 10.0 * n, 4.0, granularity=f"ffn={8 + n % count}x2") for n in range(100)]
    _, labels = plot("a load", samples(*rows)).axes[1].get_legend_handles_labels()
    assert len(labels) == min(count, MAX_SUBMODELS + 1)
    assert any(OTHERS in label for label in labels) == (count > MAX_SUBMODELS)


def test_a_load_without_answers_can_be_drawn(tmp_path):  # type: ignore[no-untyped-def]
    plot("a load", samples(REFUSED)).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
