import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F

from elastic.data.dense import load_dense_set
from elastic.errors import ConfigError, DataError
from elastic.evaluate.dense import (
    ProbeConfig,
    confusion_matrix,
    depth_of,
    judge_segments,
    probe_dense,
    probe_depth,
    probe_segments,
    upsampling,
    whitening,
)
from elastic.evaluate.features import patch_features, read_images

from ..data.drawing import encode
from .conftest import PREPROCESS

SIDE, SCALE = 4, 4
NUM_CODES = 128
NAMES = ("background", "disc", "star", "tree")
SHORT = ProbeConfig(steps=60, batch_size=16, pixels=64, lr=3e-2)
LONG = replace(SHORT, steps=300)


def patch_codes(num_images: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(NUM_CODES, size=(num_images, SIDE, SIDE))


def labels(codes: np.ndarray) -> np.ndarray:
    """The class that every patch's code stands for, at all of its pixels."""
    return (codes % len(NAMES)).astype(np.uint8).repeat(SCALE, axis=1).repeat(SCALE, axis=2)


def one_hot(codes: np.ndarray) -> torch.Tensor:
    return torch.eye(NUM_CODES)[torch.from_numpy(codes).flatten(1)]


TRAIN, TEST = patch_codes(128, 0), patch_codes(64, 1)


def test_iou_and_accuracy_match_a_case_worked_by_hand():
    wanted = np.array([[0, 0, 0, 0], [1, 1, 1, 1]], np.uint8)
    found = np.array([[0, 0, 1, 2], [1, 1, 0, 1]])
    confusion = confusion_matrix(wanted, found, 4)
    assert confusion.tolist() == [[2, 1, 1, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    score = judge_segments(confusion, NAMES)
    # Background: 2 of 4 found, 1 pixel too many. Disc: 3 of 4 found, 1 too many. Star occurs only as a mistake.
    assert score.iou == {"background": pytest.approx(2 / 5), "disc": pytest.approx(3 / 5)}
    assert score.mean_iou == pytest.approx(1 / 2)
    assert score.pixel_accuracy == pytest.approx(5 / 8)


def test_depth_is_the_weighted_mean_of_the_bin_centres():
    # Centres 0.001, 5.0005 and 10 m; weights 1.001, 0.001 and 3.001.
    expected = (1.001 * 0.001 + 0.001 * 5.0005 + 3.001 * 10) / (1.001 + 0.001 + 3.001)
    logits = torch.tensor([[1.0, -2.0, 3.0], [-1.0, -5.0, 0.0]])
    torch.testing.assert_close(depth_of(logits, 10.0), torch.tensor([expected, 5.0005]))


def test_depth_reaches_from_the_first_centre_to_the_last():
    logits = torch.full((2, 256), -1.0)
    logits[0, 0] = logits[1, 255] = 1e6
    torch.testing.assert_close(depth_of(logits, 8.0), torch.tensor([0.001, 8.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [4, 8, 19])
def test_upsampling_equals_bilinear_interpolation(size):
    logits = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(logits, size=(size, size), mode="bilinear", align_corners=False)
    found = upsampling(SIDE**2, size) @ logits.flatten(2).transpose(1, 2)
    torch.testing.assert_close(found.transpose(1, 2).unflatten(2, (size, size)), expected)


def test_whitened_features_vary_alike_in_every_direction_whatever_their_scales():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(40000, 3, generator=generator) @ torch.tensor([[1.0, 0.9, 0.0], [0, 0.5, 0], [0, 0, 1]])
    features = mixed * torch.tensor([1.0, 100.0, 1e-3]) + torch.tensor([5.0, -300.0, 0.0])
    mean, matrix = whitening(features)
    covariance = ((features - mean) @ matrix).T.cov(correction=0)
    torch.testing.assert_close(covariance, torch.eye(3), atol=1e-2, rtol=0)


def test_a_feature_that_never_varies_is_left_at_zero():
    features = torch.cat([torch.randn(100, 2, generator=torch.Generator().manual_seed(0)), torch.ones(100, 1)], dim=1)
    mean, matrix = whitening(features)
    assert torch.isfinite(matrix).all()
    same = features[:1].expand(2, 3) + torch.tensor([[0.0, 0, 0], [0, 0, 1e-7]])
    torch.testing.assert_close(*((same - mean) @ matrix))


def test_features_that_tell_the_labels_are_segmented_almost_perfectly():
    score = probe_segments(one_hot(TRAIN), labels(TRAIN), one_hot(TEST), labels(TEST), NAMES, SHORT)
    assert score.mean_iou > 0.9
    assert score.pixel_accuracy > 0.95
    assert set(score.iou) == set(NAMES)


def test_labels_of_other_images_teach_no_more_than_chance():
    shuffled = labels(patch_codes(128, 2))
    score = probe_segments(one_hot(TRAIN), shuffled, one_hot(TEST), labels(TEST), NAMES, SHORT)
    # Uniform guesses among 4 classes: accuracy 1/4, IoU (1/16) / (1/4 + 1/4 - 1/16) = 1/7.
    assert score.pixel_accuracy == pytest.approx(1 / 4, abs=0.1)
    assert score.mean_iou == pytest.approx(1 / 7, abs=0.08)


def test_only_classes_of_the_tested_images_count():
    few = TEST - TEST % 4 + TEST % 2
    score = probe_segments(one_hot(TRAIN), labels(TRAIN), one_hot(few), labels(few), NAMES, SHORT)
    assert set(score.iou) == {"background", "disc"}
    assert score.mean_iou > 0.9


def test_the_same_seed_gives_the_same_score():
    first, again, other = (
        probe_segments(
            one_hot(TRAIN), labels(TRAIN), one_hot(TEST), labels(TEST), NAMES, replace(SHORT, steps=5, seed=seed)
        )
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_depth_that_is_in_the_features_is_found():
    # One distance for a whole image, as interpolation between patches is no part of what is asked.
    codes = np.random.default_rng(0).integers(4, size=64)
    depth = np.array([1000, 2000, 4000, 7000], np.uint16)[codes][:, None, None].repeat(8, axis=1).repeat(8, axis=2)
    features = torch.eye(4)[torch.from_numpy(codes)][:, None].expand(-1, SIDE**2, -1)
    score = probe_depth(features[:48], depth[:48], features[48:], depth[48:], LONG)
    assert score.num_pixels == 16 * 8 * 8
    assert score.rmse_m < 0.1


def test_without_information_the_depth_probe_predicts_the_mean():
    half = np.full((16, 8, 8), 2000, np.uint16)
    half[::2] = 4000
    same = torch.zeros(16, SIDE**2, 3)
    assert probe_depth(same, half, same, half, LONG).rmse_m == pytest.approx(1.0, abs=0.02)


def test_unknown_depth_is_neither_learned_from_nor_judged():
    depth = np.full((16, 8, 8), 3000, np.uint16)
    depth[:, :, :4] = 0
    same = torch.zeros(16, SIDE**2, 3)
    score = probe_depth(same, depth, same, depth, LONG)
    assert score.num_pixels == 16 * 32
    assert score.rmse_m < 0.05  # 1.5 would be the best if zeros counted as distances


def test_images_without_any_known_depth_cannot_be_judged():
    same, depth = torch.zeros(2, SIDE**2, 3), np.ones((2, 8, 8), np.uint16)
    with pytest.raises(DataError, match="no pixel of the tested images has a known depth"):
        probe_depth(same, depth, same, 0 * depth, replace(SHORT, steps=1))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"pixels": 0}, {"lr": 0.0}, {"weight_decay": -1.0}])
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="probe"):
        ProbeConfig(**wrong)
    with pytest.raises(ConfigError, match="max_depth_m"):
        ProbeConfig(max_depth_m=0.0)


def dense_file(path, names=("background", "red"), with_depth=True):
    """Images whose left or right half is red, 1 m away instead of 3."""
    records = []
    for row in range(24):
        inside = np.zeros((16, 16), bool)
        inside[:, :8] = row % 3 == 0
        inside[:, 8:] = row % 3 == 1
        image = np.where(inside[..., None], [200 + row, 20, 20], [40, 60, 90 + row]).astype(np.uint8)
        record = {
            "image": encode(image),
            "split": "test" if row >= 16 else "train",
            "segments": encode(inside.astype(np.uint8)),
        }
        if with_depth:
            record["depth_mm"] = encode(np.where(inside, 1000, 3000).astype(np.uint16))
        records.append(record)
    table = pa.Table.from_pylist(records).replace_schema_metadata({"segment_names": json.dumps(names)})
    pq.write_table(table, path)
    return str(path)


def test_an_encoder_is_probed_at_every_submodel(tmp_path, encoder):
    location = dense_file(tmp_path / "set.parquet")
    train, test = (load_dense_set(location, split) for split in ("train", "test"))
    submodels = [encoder.space.smallest, encoder.space.full]
    found = probe_dense(encoder, PREPROCESS, train, test, submodels, LONG)
    assert list(found) == submodels
    for submodel in submodels:
        seen, unseen = (
            patch_features(encoder, read_images(data.source, data.row_ids, PREPROCESS), submodel)
            for data in (train, test)
        )
        segments = probe_segments(seen, train.segments, unseen, test.segments, train.segment_names, LONG)
        assert found[submodel].segmentation == segments
        assert found[submodel].depth == probe_depth(seen, train.depth_mm, unseen, test.depth_mm, LONG)
    best = found[encoder.space.full]
    assert best.segmentation.mean_iou > 0.8  # colours are easy even for random weights
    assert best.depth.rmse_m < 0.7  # 0.94 is the deviation of the distances


def test_sets_without_depth_are_probed_for_segments_alone(tmp_path, encoder):
    data = load_dense_set(dense_file(tmp_path / "set.parquet", with_depth=False), "train")
    score = probe_dense(encoder, PREPROCESS, data, data, [encoder.space.full], replace(SHORT, steps=2))
    assert score[encoder.space.full].depth is None


def test_sets_that_do_not_belong_together_are_refused(tmp_path, encoder):
    data = load_dense_set(dense_file(tmp_path / "a.parquet"), "train")
    renamed = load_dense_set(dense_file(tmp_path / "b.parquet", names=("background", "blue")), "test")
    flat = load_dense_set(dense_file(tmp_path / "c.parquet", with_depth=False), "test")
    with pytest.raises(DataError, match="names other classes"):
        probe_dense(encoder, PREPROCESS, data, renamed, [encoder.space.full])
    with pytest.raises(DataError, match="only one of the two sets has 'depth_mm'"):
        probe_dense(encoder, PREPROCESS, data, flat, [encoder.space.full])
