import math

import pytest

from elastic.errors import ProfileError
from elastic.evaluate.result import load_baselines, save_baselines


def test_baselines_survive_the_disk(evaluation, tmp_path):
    save_baselines(tmp_path / "baselines.json", evaluation.baselines)
    assert load_baselines(tmp_path / "baselines.json") == evaluation.baselines


def test_missing_baselines_say_how_to_make_them(tmp_path):
    with pytest.raises(ProfileError, match="elastic evaluate"):
        load_baselines(tmp_path / "baselines.json")


def test_a_value_is_by_default_the_own_index_at_full_width(evaluation):
    small, full = evaluation.config.space.smallest, evaluation.config.space.full
    assert evaluation.value(small) == evaluation.quality.row(small, small, 8).recall_at_1
    row = evaluation.quality.row(small, full, 4, domain="fruit")
    assert evaluation.value(small, full, 4, metric="mmp_at_5", domain="fruit") == row.mmp_at_5


def test_the_standard_error_of_a_mean_over_domains_adds_their_variances(evaluation):
    full = evaluation.config.space.full
    fruit, sign = (evaluation.quality.row(full, full, 8, domain=domain) for domain in ("fruit", "sign"))
    variance = sum(row.recall_at_1 * (1 - row.recall_at_1) / row.num_queries for row in (fruit, sign))
    assert evaluation.standard_error(full) == pytest.approx(math.sqrt(variance) / 2)
