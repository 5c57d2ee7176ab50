import numpy as np
from PIL import Image

from elastic.evaluate.plots import compatibility, quality_vs_embed_dim, quality_vs_flops, write_plots
from elastic.profile.flops import count_image


def test_every_plot_is_written_as_a_readable_image(evaluation, tmp_path):
    paths = write_plots(tmp_path / "plots", evaluation)
    assert [path.name for path in paths] == [
        "quality_vs_flops.png",
        "quality_vs_embed_dim.png",
        "compatibility.png",
    ]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert pixels.shape[1] > 700
        assert pixels.std() > 0


def test_the_compute_plot_has_a_point_for_every_submodel(evaluation):
    axes = quality_vs_flops(evaluation).axes[0]
    drawn = {(x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
    for submodel in evaluation.config.space.mixes():
        mflops = count_image(evaluation.config, submodel).flops / 1e6
        assert (mflops, evaluation.value(submodel)) in drawn


def test_the_width_plot_has_a_line_for_every_granularity(evaluation):
    space = evaluation.config.space
    lines = {tuple(line.get_ydata()) for line in quality_vs_embed_dim(evaluation).axes[0].lines}
    for submodel in space.granularities.values():
        assert tuple(evaluation.value(submodel, submodel, width) for width in space.embed_dims) in lines


def test_the_heat_map_writes_query_rows_and_index_columns(evaluation):
    axes = compatibility(evaluation).axes[0]
    submodels = list(evaluation.config.space.granularities.values())
    written = {text.get_position(): text.get_text() for text in axes.texts}
    for row, query in enumerate(submodels):
        for column, index in enumerate(submodels):
            assert written[column, row] == f"{evaluation.value(query, index):.3f}"
