import pytest

from elastic.errors import ConfigError, DataError
from elastic.evaluate.run import EvaluateConfig, evaluate

from .conftest import PREPROCESS, rows, write_set


def test_an_evaluation_covers_images_captions_and_baselines(evaluation):
    assert {row.task for row in evaluation.quality.rows} == {"image_retrieval", "text_to_image"}
    assert set(evaluation.baselines) == {"chance", "pixels"}
    assert (evaluation.num_images, evaluation.num_classes, evaluation.num_broken) == (15, 5, 0)


def test_progress_reaches_the_end_of_every_stage(encoder, tokenizer, colours):
    seen = {}
    evaluate(
        encoder,
        PREPROCESS,
        tokenizer,
        EvaluateConfig(source=colours, baselines=()),
        name="tiny",
        on_progress=lambda stage, done, total: seen.update({stage: (done, total)}),
    )
    assert set(seen) == {"embedding", "searching", "searching by text"}
    assert all(done == total for done, total in seen.values())


def test_data_without_captions_gives_no_text_rows(encoder, tokenizer, tmp_path):
    location = write_set(tmp_path / "set.parquet", [row | {"caption": None} for row in rows()])
    found = evaluate(encoder, PREPROCESS, tokenizer, EvaluateConfig(source=location, baselines=()), name="tiny")
    assert {row.task for row in found.quality.rows} == {"image_retrieval"}


def test_queries_alone_in_their_class_are_counted_and_fail(encoder, tmp_path):
    location = write_set(tmp_path / "set.parquet", rows()[:4])
    found = evaluate(encoder, PREPROCESS, None, EvaluateConfig(source=location, baselines=()), name="tiny")
    assert found.num_lonely == 1
    assert found.value(encoder.space.full, domain="all") <= 3 / 4


def test_settings_outside_their_range_are_refused():
    with pytest.raises(ConfigError, match="batch_size"):
        EvaluateConfig(batch_size=0)
    with pytest.raises(ConfigError, match="max_bad_fraction"):
        EvaluateConfig(max_bad_fraction=1.5)


def test_too_many_broken_images_stop_the_evaluation(encoder, tmp_path):
    location = write_set(tmp_path / "set.parquet", [row | {"image": b"x"} for row in rows()])
    with pytest.raises(DataError, match="15 of 15 images"):
        evaluate(encoder, PREPROCESS, None, EvaluateConfig(source=location), name="tiny")
