from elastic.objectives.mim import MaskedImages
from elastic.recipes.icons import icons
from elastic.recipes.mim import mim
from elastic.train.preparation import check_data


def test_the_bundled_icons_feed_both_objectives():
    config = mim()
    assert check_data(config).num_classes > 1000
    assert set(config.objectives) == {"classes", "masked"} and config.masking.ratio == 0.5


def test_the_image_tower_and_the_views_are_those_of_icons():
    config, full = mim(), icons()
    assert config.model.vision == full.model.vision and config.data == full.data


def test_targets_are_the_patches_as_they_are():
    masked, shape = mim().objectives["masked"], mim().model.vision.shape
    assert isinstance(masked, MaskedImages)
    assert masked.target_px * round(shape.num_patches**0.5) == mim().data.image_size
