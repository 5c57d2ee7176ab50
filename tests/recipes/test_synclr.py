import pytest
import torch

from elastic.data.feed import LocalFeed
from elastic.objectives.tips import MaskedPatches
from elastic.recipes.synclr import synclr
from elastic.train.preparation import check_data, dimensions, feed_config
from elastic.train.state import TrainState
from elastic.train.step import train_step

from .conftest import NUM_CAPTIONS

pytestmark = pytest.mark.usefixtures("small_scenes")


def test_scenes_feed_every_objective_with_whole_caption_groups():
    config = synclr()
    assert len(check_data(config).streams[0].groups) == NUM_CAPTIONS
    (batch,) = LocalFeed(feed_config(config, None, {})).batches(0, 1)
    assert batch.present >= {"caption_ids", "local_images"} and batch.labels is None
    assert batch.caption_ids.view(32, 4).unique(dim=1).shape == (32, 1)


def test_a_step_teaches_with_three_positives_for_each_image():
    config = synclr()
    (batch,) = LocalFeed(feed_config(config, None, {})).batches(0, 1)
    state = TrainState(config, dimensions(config, check_data(config)), torch.device("cpu"))
    report = train_step(state, [batch], [state.space.smallest], rank=0)
    assert report["synclr/positives@mean/S"] == 3 and report["synclr/anchored@fraction/S"] == 1
    assert {"synclr/global/S", "synclr/local/S", "masked/patches/S", "nested/nce/S"} <= report.keys()


def test_there_are_few_enough_prototypes_to_balance():
    config = synclr()
    masked = config.objectives["masked"]
    assert isinstance(masked, MaskedPatches) and masked.prototypes.balance == "sinkhorn"
    hidden = config.masking.ratio * config.model.vision.shape.num_patches * config.data.streams[0].sampling.batch_size
    assert masked.prototypes.count <= hidden / 4


def test_nothing_that_captions_say_is_changed_by_a_view():
    config = synclr()
    for augment in (config.data.augment, config.data.streams[0].local_crops.augment):
        assert augment.flip_probability == augment.rotation_deg == 0
