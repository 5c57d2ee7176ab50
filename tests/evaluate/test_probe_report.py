from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from elastic.evaluate.probe_report import draw, explain, summarise, write_probes_plot, write_probes_report
from elastic.evaluate.probe_result import METRIC_KINDS


def written(probes, folder):
    write_probes_report(folder / "probes.md", probes, folder / "plots" / "probes.png")
    return (folder / "probes.md").read_text()


def test_one_table_holds_every_metric_of_every_granularity_beside_what_it_is_compared_with(probes):
    header, rows = summarise(probes)
    assert header == ["", "floor", "untrained", "g0", "g1", "g2", "g2 at 4", "error"]
    assert [row[0] for row in rows] == [kind.label for kind in METRIC_KINDS.values()]
    for (metric, kind), row in zip(METRIC_KINDS.items(), rows, strict=True):
        values = [probes.value(metric, submodel) for submodel in probes.space.granularities.values()]
        compared = (probes.scales[metric].floor, probes.untrained_value(metric))
        assert row[1:6] == [f"{value:.3f}" for value in (*compared, *values)]
        narrow = f"{probes.value(metric, probes.space.full, 4):.3f}" if kind.by_width else ""
        assert row[6] == narrow


def test_a_model_of_one_width_has_no_column_for_a_narrower_one(probes):
    space = replace(probes.space, embed_dims=(8,))
    header, rows = summarise(replace(probes, space=space))
    assert header == ["", "floor", "untrained", "g0", "g1", "g2", "error"]
    assert {len(row) for row in rows} == {7}


def test_untrained_weights_that_were_left_out_are_nowhere(probes, tmp_path):
    without = replace(probes, untrained=())
    header, rows = summarise(without)
    assert header == ["", "floor", "g0", "g1", "g2", "g2 at 4", "error"]
    assert {len(row) for row in rows} == {7}
    assert "ntrained" in written(probes, tmp_path)
    assert "ntrained" not in written(without, tmp_path)
    assert {text.get_text() for text in draw(without).legends[0].get_texts()} == {"g0", "g1", "g2", "floor"}


def test_every_width_of_every_granularity_is_in_the_report(probes, tmp_path):
    text = written(probes, tmp_path)
    for metric, kind in METRIC_KINDS.items():
        section = text.partition(f"\n## {kind.label[0].upper()}{kind.label[1:]}\n")[2].partition("\n## ")[0]
        for name, submodel in probes.space.granularities.items():
            values = " | ".join(f"{probes.value(metric, submodel, width):.3f}" for width in probes.space.embed_dims)
            assert (f"| **{name}** | {values} |" in section) == kind.by_width
        values = " | ".join(f"{probes.untrained_value(metric, width):.3f}" for width in probes.space.embed_dims)
        assert (f"| untrained | {values} |" in section) == kind.by_width


def test_the_report_says_on_what_and_how_it_was_measured(probes, tmp_path):
    text = written(probes, tmp_path)
    assert text.startswith("# Probes of `tiny`")
    assert "12 images of split `test`" in text
    assert "24 of `train`, 6 of `val`" in text
    assert "12 images, 3 names" in text
    assert "](plots/probes.png)" in text
    assert "No more than" not in text
    assert "No more than 24 images of a split are read" in written(replace(probes, max_images=24), tmp_path)
    assert str(probes.provenance.device) in text
    assert probes.provenance.commit in text


def test_the_report_names_the_token_that_synthetic_captions_are_searched_by(probes, tmp_path):
    said = "Synthetic captions and images find each other by the embedding of"
    assert f"{said} `cls_token`" in written(probes, tmp_path)
    second = replace(probes, synthetic_caption_token="second_cls_token")
    assert f"{said} `second_cls_token`" in written(second, tmp_path)
    without = {metric: scale for metric, scale in probes.scales.items() if "synthetic" not in metric}
    assert said not in written(replace(second, scales=without), tmp_path)


def test_chance_and_constant_answers_are_told_apart(probes):
    text = explain(probes)
    assert "Floor: chance; always the commonest class for linear mIoU and linear pixel accuracy; always" in text


def test_what_was_not_measured_is_said_with_its_reason(probes, tmp_path):
    assert "Not measured" not in written(probes, tmp_path)
    without = replace(probes, not_measured={"depth": "there is none"})
    assert "## Not measured\n\n- depth: there is none" in written(without, tmp_path)


def test_the_plot_has_a_panel_for_every_metric_with_its_values(probes):
    panels = draw(probes).axes
    assert [panel.get_title().partition("\n")[0] for panel in panels] == [kind.label for kind in METRIC_KINDS.values()]
    submodels = list(probes.space.granularities.values())
    for panel, (metric, kind) in zip(panels, METRIC_KINDS.items(), strict=True):
        lines = [list(line.get_ydata()) for line in panel.lines]
        if kind.by_width:
            for submodel in submodels:
                assert [probes.value(metric, submodel, width) for width in probes.space.embed_dims] in lines
        else:
            assert [bar.get_height() for bar in panel.patches] == [probes.value(metric, its) for its in submodels]
        assert [probes.scales[metric].floor] * 2 in lines
        (dotted,) = (line for line in panel.lines if line.get_label() == "untrained")
        fresh = [probes.untrained_value(metric, width) for width in probes.space.embed_dims]
        assert list(dotted.get_ydata()) == (fresh if kind.by_width else [probes.untrained_value(metric)] * 2)


def test_a_plot_of_few_metrics_is_not_stretched(probes):
    one = replace(probes, scales={"mean_iou": probes.scales["mean_iou"]})
    assert len(draw(one).axes) == 1
    assert draw(one).get_size_inches()[0] == pytest.approx(3.4)


def test_the_legend_and_title_of_a_single_panel_fit_its_width(probes):
    one = replace(probes, source="scenes", scales={"knn_1_top1": probes.scales["knn_1_top1"]})
    figure = draw(one)
    figure.canvas.draw()
    for artist in (figure.legends[0], *figure.texts):
        extent = artist.get_window_extent()
        assert extent.x0 >= 0
        assert extent.x1 <= figure.bbox.width


def test_the_plot_is_written_as_a_readable_image(probes, tmp_path):
    path = write_probes_plot(tmp_path / "plots", probes)
    assert path == tmp_path / "plots" / "probes.png"
    assert np.asarray(Image.open(path).convert("L")).std() > 0
