import json
from dataclasses import replace

import pytest

from elastic.errors import ProfileError
from elastic.evaluate.probe_result import METRIC_KINDS, Probes


def test_what_was_found_survives_the_disk(probes, tmp_path):
    probes.save(tmp_path / "probes.json")
    assert Probes.load(tmp_path / "probes.json") == probes


def test_the_file_says_where_its_numbers_come_from(probes, tmp_path):
    probes.save(tmp_path / "probes.json")
    written = json.loads((tmp_path / "probes.json").read_text())["provenance"]
    assert written["commit"] == probes.provenance.commit
    assert written["device"]["processor"] == probes.provenance.device.processor
    assert "torch" in written["versions"]


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ProfileError, match="run `elastic probe` first"):
        Probes.load(tmp_path / "probes.json")


@pytest.mark.parametrize(
    "text", ["not json", "[]", "{}", '{"space": {"depth": 0, "ffn_dims": [1], "embed_dims": [1]}}']
)
def test_a_file_of_another_kind_is_refused(text, tmp_path):
    (tmp_path / "probes.json").write_text(text)
    with pytest.raises(ProfileError, match="does not hold probes of this version"):
        Probes.load(tmp_path / "probes.json")


def test_a_score_is_found_by_metric_submodel_and_width(probes):
    first, space = probes.scores[0], probes.space
    assert probes.value(first.metric, first.submodel, first.embed_dim) == first.value
    full = probes.value("knn_1_top1", space.full)
    assert full == probes.value("knn_1_top1", space.full, space.full_embed_dim)
    # What is measured on tokens has one width, whichever is asked for.
    assert probes.value("mean_iou", space.full, 4) == probes.value("mean_iou", space.full)


def test_what_untrained_weights_reach_is_found_by_metric_and_width(probes):
    for score in probes.untrained:
        assert probes.untrained_value(score.metric, score.embed_dim) == score.value
    full_width = probes.space.full_embed_dim
    assert probes.untrained_value("knn_1_top1") == probes.untrained_value("knn_1_top1", full_width)


def test_a_score_that_was_not_measured_is_an_error(probes):
    with pytest.raises(ProfileError, match=r"no knn_1_top1 of .* at embed_dim 5"):
        probes.value("knn_1_top1", probes.space.full, 5)
    with pytest.raises(ProfileError, match=r"no mean_iou of .* at embed_dim None"):
        replace(probes, untrained=()).untrained_value("mean_iou")


def test_a_file_from_before_untrained_weights_were_measured_is_refused(probes, tmp_path):
    probes.save(tmp_path / "probes.json")
    older = json.loads((tmp_path / "probes.json").read_text())
    del older["untrained"]
    (tmp_path / "probes.json").write_text(json.dumps(older))
    with pytest.raises(ProfileError, match="does not hold probes of this version"):
        Probes.load(tmp_path / "probes.json")


def test_the_standard_error_is_that_of_independent_queries(probes):
    share = probes.value("knn_1_top1", probes.space.smallest)
    assert probes.standard_error("knn_1_top1", probes.space.smallest) == pytest.approx(
        (share * (1 - share) / 12) ** 0.5
    )


def test_pixels_are_not_independent_queries(probes):
    for metric, kind in METRIC_KINDS.items():
        is_of_pixels = kind.task in ("segments", "depth")
        assert (probes.standard_error(metric, probes.space.full) is None) == is_of_pixels
