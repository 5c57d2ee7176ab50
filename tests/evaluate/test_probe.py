from dataclasses import replace

import pytest
import torch

from elastic.errors import ConfigError
from elastic.evaluate.probe import probe, untrained
from elastic.evaluate.probe_result import METRIC_KINDS
from elastic.evaluate.probe_tasks import TASKS, ProbesConfig
from elastic.model.encoder import Encoder

from .conftest import PREPROCESS
from .probing import record, records, write


def run(encoder, tokenizer, location, *, untrained=False, **settings):
    steps = []
    config = ProbesConfig(source=location, dense_steps=2, untrained=untrained, **settings)
    found = probe(encoder, PREPROCESS, tokenizer, config, name="tiny", on_progress=lambda *step: steps.append(step))
    return found, steps


def test_every_granularity_is_measured_at_every_width_and_its_tokens_once(probes):
    expected = [
        (metric, submodel, width)
        for submodel in probes.space.granularities.values()
        for metric, kind in METRIC_KINDS.items()
        for width in (probes.space.embed_dims if kind.by_width else (None,))
    ]
    found, fresh = (
        [(score.metric, score.submodel, score.embed_dim) for score in scores]
        for scores in (probes.scores, probes.untrained)
    )
    assert sorted(map(str, found)) == sorted(map(str, expected))
    assert sorted(map(str, fresh)) == sorted(str(cell) for cell in expected if cell[1] == probes.space.full)
    assert set(probes.scales) == set(METRIC_KINDS)
    assert not probes.not_measured


def test_easy_colours_are_told_better_than_by_the_floor(probes):
    for metric in ("knn_1_top1", "linear_top1", "mean_iou", "pixel_accuracy"):
        assert probes.value(metric, probes.space.full) > probes.scales[metric].floor + 0.1
    assert probes.value("depth_rmse_m", probes.space.full) < probes.scales["depth_rmse_m"].floor - 0.1


def test_the_result_says_on_what_it_was_measured(probes, halves):
    assert (probes.run_name, probes.source, probes.split, probes.domains) == ("tiny", halves, "test", ("halves",))
    assert probes.num_images == {"test": 12, "train": 24, "val": 6}
    assert probes.scales["knn_20_top1"].num_tested == 12


def test_progress_counts_every_task_of_every_granularity(encoder, tokenizer, halves):
    _, steps = run(encoder, tokenizer, halves, tasks=("knn", "captions"))
    assert [done for _, done, _ in steps] == [0, *range(6)]
    assert {total for _, _, total in steps} == {6}
    assert [stage for stage, _, _ in steps[:3]] == ["reading images", "captions of g0", "knn of g0"]


def test_progress_counts_every_task_of_the_untrained_encoder_too(encoder, tokenizer, halves):
    _, steps = run(encoder, tokenizer, halves, tasks=("knn", "captions"), untrained=True)
    assert [done for _, done, _ in steps] == [0, *range(8)]
    assert {total for _, _, total in steps} == {8}
    assert [stage for stage, _, _ in steps[-2:]] == ["captions of untrained weights", "knn of untrained weights"]


def test_untrained_weights_are_measured_as_any_encoder_is_at_its_full_size(encoder, tokenizer, halves):
    tasks = ("captions", "knn", "linear", "segments")
    found, _ = run(encoder, tokenizer, halves, tasks=tasks, untrained=True)
    torch.manual_seed(0)
    fresh, _ = run(Encoder(encoder.config).eval(), tokenizer, halves, tasks=tasks)
    full = encoder.space.full
    assert found.untrained == tuple(score for score in fresh.scores if score.submodel == full)
    assert found.scores == run(encoder, tokenizer, halves, tasks=tasks)[0].scores
    assert fresh.untrained == ()


def test_untrained_weights_are_of_the_same_shape_and_always_the_same(encoder):
    first, second = (untrained(encoder).state_dict() for _ in range(2))
    torch.manual_seed(0)
    by_hand = Encoder(encoder.config).state_dict()
    for name, weight in encoder.state_dict().items():
        assert first[name].shape == weight.shape
        assert torch.equal(first[name], second[name])
        assert torch.equal(first[name], by_hand[name])
    assert not untrained(encoder).training


def test_untrained_weights_are_not_those_that_training_started_from(encoder):
    vision = replace(encoder.config.vision, checkpoint="nowhere/model.safetensors")
    started = Encoder(replace(encoder.config, vision=vision))
    torch.nn.init.ones_(started.image.head.weight)
    assert torch.equal(untrained(started).image.head.weight, untrained(encoder).image.head.weight)


def test_drawing_untrained_weights_leaves_the_random_numbers_of_the_caller_alone(encoder):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    untrained(encoder)
    assert torch.equal(torch.rand(3), expected)


def test_only_what_was_asked_for_is_measured_and_only_its_images_are_read(encoder, tokenizer, halves):
    found, _ = run(encoder, tokenizer, halves, tasks=("captions",))
    assert list(found.scales) == ["image_to_caption", "caption_to_image"]
    assert found.num_images == {"test": 12}
    assert found.not_measured == {}


def test_what_is_impossible_is_left_out_and_the_reason_kept(encoder, halves):
    silent = Encoder(replace(encoder.config, text=None)).eval()
    found, _ = run(silent, None, halves, split="val")
    assert {METRIC_KINDS[metric].task for metric in found.scales} == {"knn", "segments", "depth"}
    assert set(found.not_measured) == {"zero_shot", "captions", "synthetic_captions", "linear"}
    assert found.not_measured["captions"] == "the model has no text tower"


def test_a_source_without_labels_of_pixels_is_probed_for_the_rest(encoder, tokenizer, tmp_path):
    location = write(tmp_path / "set.parquet", records(), without=("segments", "depth_mm"))
    found, _ = run(encoder, tokenizer, location)
    assert set(found.not_measured) == {"segments", "depth"}


def test_a_task_that_was_asked_for_and_is_impossible_is_an_error(encoder, tokenizer, tmp_path):
    location = write(tmp_path / "set.parquet", records(), without=("depth_mm",))
    with pytest.raises(ConfigError, match="depth is impossible, the source has no column 'depth_mm'"):
        run(encoder, tokenizer, location, tasks=("knn", "depth"))


def test_a_source_on_which_nothing_can_be_measured_is_an_error(encoder, tmp_path):
    rows = [record(number, "test") for number in range(4)]
    location = write(tmp_path / "set.parquet", rows, without=("label", "segments"))
    with pytest.raises(ConfigError) as refused:
        run(encoder, None, location)
    assert all(f"{task} is impossible" in str(refused.value) for task in TASKS)


def test_a_second_class_token_that_the_encoder_lacks_is_refused_at_once(encoder, tokenizer):
    with pytest.raises(ConfigError, match="no second class token"):
        run(encoder, tokenizer, "a source that is never opened", token="second_cls_token")


def test_a_second_class_token_is_read_where_there_is_one(encoder, tokenizer, halves):
    vision = replace(encoder.config.vision, pool="token", num_cls_tokens=2)
    two = Encoder(replace(encoder.config, vision=vision)).eval()
    first, second = (
        run(two, tokenizer, halves, tasks=("segments",), token=token)[0] for token in ("cls_token", "second_cls_token")
    )
    assert first.scores != second.scores
    assert first.synthetic_caption_token == second.synthetic_caption_token == "second_cls_token"
