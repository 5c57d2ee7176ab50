from pathlib import Path

from elastic.evaluate.report import markdown_table, write_report


def written(evaluation, tmp_path: Path) -> str:
    path = tmp_path / "report.md"
    write_report(path, evaluation, [tmp_path / "plots" / "quality_vs_flops.png"])
    return path.read_text()


def test_a_table_aligns_its_first_column_left_and_its_numbers_right():
    assert markdown_table(["a", "b"], [["x", "1"]]) == "| a | b |\n| :-- | --: |\n| x | 1 |"


def test_the_report_shows_every_width_of_every_granularity(evaluation, tmp_path):
    text = written(evaluation, tmp_path)
    space = evaluation.config.space
    for name, submodel in space.granularities.items():
        values = " | ".join(f"{evaluation.value(submodel, submodel, width):.3f}" for width in space.embed_dims)
        assert f"| **{name}** | {values} |" in text


def test_the_report_shows_the_baselines_beside_the_model(evaluation, tmp_path):
    text = written(evaluation, tmp_path)
    pixels = evaluation.baselines["pixels"]
    assert f"| {pixels['mean'].recall_at_1:.3f} | {pixels['all'].recall_at_1:.3f} |" in text
    assert "| chance |" in text


def test_the_report_says_on_what_and_how_it_was_measured(evaluation, tmp_path):
    text = written(evaluation, tmp_path)
    assert "15 images of 5 classes in 2 domains" in text
    assert str(evaluation.quality.provenance.device) in text
    assert evaluation.quality.provenance.commit in text
    assert "](plots/quality_vs_flops.png)" in text


def test_a_mix_is_compared_with_the_line_between_its_neighbours(evaluation, tmp_path):
    text = written(evaluation, tmp_path)
    mixes = [submodel for submodel in evaluation.config.space.mixes() if not submodel.is_uniform]
    assert mixes
    for mix in mixes:
        line = next(line for line in text.splitlines() if line.startswith(f"| `{mix}` "))
        assert line.split("|")[4].strip()[0] in "+-"


def test_text_to_image_is_part_of_the_report_when_it_was_measured(evaluation, tmp_path):
    assert "## Text to image" in written(evaluation, tmp_path)
