from dataclasses import replace

import numpy as np
import pytest
import torch

from elastic.errors import ConfigError
from elastic.evaluate.dense import ProbeConfig, probe_dense
from elastic.evaluate.embed import truncate
from elastic.evaluate.features import global_features, read_images, text_embeddings
from elastic.evaluate.linear import Rows, linear_probe
from elastic.evaluate.metrics import nearest
from elastic.evaluate.probe_set import load_dense, load_probe_set
from elastic.evaluate.probe_tasks import TASKS, Bench, ProbesConfig, View, embed, synthetic_caption_token
from elastic.evaluate.text_retrieval import caption_retrieval
from elastic.model.encoder import Encoder
from elastic.model.vit import embed_second

from .conftest import PREPROCESS
from .probing import record, records, write


@pytest.fixture
def bench_of(encoder, tokenizer, halves):
    def make(location=halves, **settings):
        config = ProbesConfig(source=location, dense_steps=30, **settings)
        data = load_probe_set(location, config.split, (), config.max_images)
        return Bench(encoder=encoder, tokenizer=tokenizer, config=config, data=data, dense={})

    return make


@pytest.fixture
def two_tokens(encoder):
    torch.manual_seed(0)
    vision = replace(encoder.config.vision, pool="token", num_cls_tokens=2)
    two = Encoder(replace(encoder.config, vision=vision)).eval()
    # timm starts both tokens near zero, so that fresh ones see almost the same.
    for token in (two.image.cls_token, two.image.reg_token):
        torch.nn.init.normal_(token)
    return two


def see(bench, submodel):
    images = {
        split: read_images(bench.data.source, part.row_ids, PREPROCESS) for split, part in bench.data.parts.items()
    }
    return View(submodel=submodel, images=images, embedded=embed(bench, images[bench.data.split], submodel))


def test_zero_shot_chooses_the_class_whose_texts_are_nearest(bench_of, encoder, tokenizer):
    bench, submodel = bench_of(), encoder.space.smallest
    view = see(bench, submodel)
    found = TASKS["zero_shot"].measure(bench, view)
    templates = ("{}", "a {}", "a picture of a {}")
    names = ("blue", "green", "red")
    for width in encoder.space.embed_dims:
        means = []
        for name in names:
            texts = [template.format(name) for template in templates]
            means.append(truncate(text_embeddings(encoder, tokenizer, texts, [submodel])[submodel], width).mean(axis=0))
        chosen = (truncate(view.embedded, width) @ truncate(np.array(means), width).T).argmax(axis=1)
        right = [names[number] == label for number, label in zip(chosen, bench.data.tested.labels, strict=True)]
        assert found["zero_shot_top1", width] == pytest.approx(np.mean(right))


@pytest.mark.parametrize(
    ("task", "metrics"),
    [
        ("captions", ("image_to_caption", "caption_to_image")),
        ("synthetic_captions", ("image_to_synthetic_caption", "synthetic_caption_to_image")),
    ],
)
def test_captions_of_one_kind_are_searched_among_their_own(bench_of, encoder, tokenizer, task, metrics):
    bench, submodel = bench_of(), encoder.space.full
    view, tested = see(bench, submodel), bench.data.tested
    texts = tested.captions if task == "captions" else tested.synthetic_captions
    distinct = sorted({text for its in texts for text in its})
    embedded = text_embeddings(encoder, tokenizer, distinct, [submodel])[submodel]
    found = TASKS[task].measure(bench, view)
    for width in encoder.space.embed_dims:
        cosines = truncate(view.embedded, width) @ truncate(embedded, width).T
        to_text = np.mean([distinct[row.argmax()] in its for row, its in zip(cosines, texts, strict=True)])
        to_image = np.mean([text in texts[row.argmax()] for row, text in zip(cosines.T, distinct, strict=True)])
        assert found[metrics[0], width] == pytest.approx(to_text)
        assert found[metrics[1], width] == pytest.approx(to_image)


def test_synthetic_captions_are_searched_by_the_token_that_was_trained_on_them(bench_of, two_tokens, tokenizer):
    bench, submodel = replace(bench_of(), encoder=two_tokens), two_tokens.space.smallest
    view, texts = see(bench, submodel), bench.data.tested.synthetic_captions
    with torch.no_grad():
        tokens = two_tokens.see(view.images["test"], submodel)
        by_hand = embed_second(two_tokens.image, tokens).second_embedding.numpy()
    second, first = (
        caption_retrieval(two_tokens, tokenizer, {submodel: embedded}, texts) for embedded in (by_hand, view.embedded)
    )
    found = TASKS["synthetic_captions"].measure(bench, view)
    for score in second:
        assert found["image_to_synthetic_caption", score.embed_dim] == pytest.approx(score.image_to_text)
        assert found["synthetic_caption_to_image", score.embed_dim] == pytest.approx(score.text_to_image)
    assert first != second


def test_written_captions_are_searched_by_the_first_token(bench_of, two_tokens, tokenizer):
    bench, submodel = replace(bench_of(), encoder=two_tokens), two_tokens.space.full
    view = see(bench, submodel)
    scores = caption_retrieval(two_tokens, tokenizer, {submodel: view.embedded}, bench.data.tested.captions)
    found = TASKS["captions"].measure(bench, view)
    assert [found["image_to_caption", score.embed_dim] for score in scores] == [score.image_to_text for score in scores]


def test_a_register_is_no_second_class_token(encoder, two_tokens):
    vision = replace(two_tokens.config.vision, num_cls_tokens=1, num_registers=4)
    one = Encoder(replace(two_tokens.config, vision=vision))
    assert [synthetic_caption_token(its) for its in (encoder, one, two_tokens)] == [
        "cls_token",
        "cls_token",
        "second_cls_token",
    ]


def test_neighbours_are_looked_up_in_the_training_rows(bench_of, encoder):
    bench, submodel = bench_of(), encoder.space.smallest
    view = see(bench, submodel)
    found = TASKS["knn"].measure(bench, view)
    index = embed(bench, view.images["train"], submodel)
    for width in encoder.space.embed_dims:
        first = nearest(truncate(view.embedded, width), truncate(index, width), 1)[:, 0]
        right = [
            bench.data.train.labels[row] == label for row, label in zip(first, bench.data.tested.labels, strict=True)
        ]
        assert found["knn_1_top1", width] == pytest.approx(np.mean(right))


def test_images_without_a_label_take_no_part_where_classes_are_asked(bench_of, encoder, tmp_path):
    extra = [record(number, split, label=None) for split in ("train", "val", "test") for number in (1, 5)]
    whole, more = bench_of(), bench_of(write(tmp_path / "set.parquet", [*records(), *extra]))
    assert len(more.data.tested) == len(whole.data.tested) + 2
    for task in ("zero_shot", "knn", "linear"):
        assert TASKS[task].scales(more) == TASKS[task].scales(whole)
        results = [TASKS[task].measure(bench, see(bench, encoder.space.full)) for bench in (whole, more)]
        assert results[0] == pytest.approx(results[1])


def test_the_linear_probe_is_fitted_on_train_and_its_decay_chosen_on_val(bench_of, encoder):
    bench, submodel = bench_of(), encoder.space.full
    view = see(bench, submodel)
    rows = [
        Rows(global_features(encoder, view.images[split], submodel), bench.data.parts[split].classes)
        for split in ("train", "val", "test")
    ]
    assert TASKS["linear"].measure(bench, view) == {("linear_top1", None): linear_probe(*rows).top1}


def test_pixels_are_probed_as_by_the_dense_protocol_up_to_the_largest_distance_of_training(bench_of, encoder):
    bench, submodel = bench_of(), encoder.space.full
    dense = load_dense(bench.data)
    bench = replace(bench, dense=dense)
    found = TASKS["segments"].measure(bench, see(bench, submodel)) | TASKS["depth"].measure(bench, see(bench, submodel))
    config = ProbeConfig(steps=30, max_depth_m=3.0)
    expected = probe_dense(encoder, PREPROCESS, dense["train"], dense["test"], [submodel], config)[submodel]
    assert expected.depth is not None
    assert found == {
        ("mean_iou", None): expected.segmentation.mean_iou,
        ("pixel_accuracy", None): expected.segmentation.pixel_accuracy,
        ("depth_rmse_m", None): expected.depth.rmse_m,
    }


def test_everything_is_possible_on_a_set_that_has_everything(bench_of):
    bench = bench_of()
    bench = replace(bench, dense=load_dense(bench.data))
    assert [task.obstacle(bench) for task in TASKS.values()] == [None] * 7


@pytest.mark.parametrize("task", ["zero_shot", "captions", "synthetic_captions"])
def test_texts_need_a_text_tower(bench_of, encoder, task):
    blind = Encoder(replace(encoder.config, text=None)).eval()
    for changes in ({"encoder": blind}, {"tokenizer": None}):
        assert TASKS[task].obstacle(replace(bench_of(), **changes)) == "the model has no text tower"


@pytest.mark.parametrize(
    ("task", "changes", "reason"),
    [
        ("zero_shot", {"label": None}, "no image of test has a label"),
        ("zero_shot", {"label": "red"}, "fewer than two names"),
        ("zero_shot", {"label": "a/1"}, "labels such as 'a/1' are ids"),
        ("captions", {"caption": None}, "no image of test has a caption"),
        ("captions", {"caption": ""}, "no image of test has a caption"),
        ("synthetic_captions", {"synthetic_captions": []}, "no image of test has a synthetic caption"),
        ("synthetic_captions", {"synthetic_captions": None}, "no image of test has a synthetic caption"),
        ("knn", {"label": None}, "no image of train has a label"),
        ("linear", {"label": None}, "no image of train has a label"),
    ],
)
def test_what_is_missing_from_the_rows_is_said(bench_of, tmp_path, task, changes, reason):
    bench = bench_of(write(tmp_path / "set.parquet", records(**changes)))
    assert reason in TASKS[task].obstacle(bench)


def test_classes_whose_labels_are_ids_can_be_called_by_their_captions(bench_of, tmp_path):
    rows = [row | {"label": f"colour/{row['label']}"} for row in records()]
    bench = bench_of(write(tmp_path / "set.parquet", rows), class_names="caption")
    assert TASKS["zero_shot"].obstacle(bench) is None
    assert TASKS["zero_shot"].scales(bench)["zero_shot_top1"].num_choices == 3


@pytest.mark.parametrize("task", ["knn", "linear"])
def test_unseen_classes_cannot_be_told_by_training_rows(bench_of, tmp_path, task):
    rows = [row | {"label": f"{row['label']} of {row['split']}"} for row in records()]
    bench = bench_of(write(tmp_path / "set.parquet", rows))
    assert TASKS[task].obstacle(bench) == "no class of test has images in train"


def test_the_linear_probe_needs_val_for_itself(bench_of, tmp_path):
    assert "val chooses its weight decay" in TASKS["linear"].obstacle(bench_of(split="val"))
    without_val = write(tmp_path / "set.parquet", [row for row in records() if row["split"] != "val"])
    assert TASKS["linear"].obstacle(bench_of(without_val)) == "no image of val has a label"


@pytest.mark.parametrize("column", ["segments", "depth_mm"])
def test_labels_of_pixels_need_their_column(bench_of, tmp_path, column):
    bench = bench_of(write(tmp_path / "set.parquet", records(), without=(column,)))
    task = {"segments": "segments", "depth_mm": "depth"}[column]
    assert TASKS[task].obstacle(bench) == f"the source has no column '{column}'"


@pytest.mark.parametrize("task", ["segments", "depth"])
def test_labels_of_pixels_need_training_images(bench_of, tmp_path, task):
    bench = bench_of(write(tmp_path / "set.parquet", [record(number, "test") for number in range(3)]))
    assert TASKS[task].obstacle(bench) == "train has no images of these domains"


def test_distances_that_are_all_unknown_cannot_be_probed(bench_of, halves):
    bench = bench_of()
    dense = load_dense(bench.data)
    unknown = replace(dense["train"], depth_mm=np.zeros_like(dense["train"].depth_mm))
    bench = replace(bench, dense=dense | {"train": unknown})
    assert TASKS["depth"].obstacle(bench) == "no pixel of train has a known depth"


@pytest.mark.parametrize("wrong", [{"split": "train"}, {"batch_size": 0}, {"max_images": 0}, {"dense_steps": 0}])
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ProbesConfig(**wrong)
