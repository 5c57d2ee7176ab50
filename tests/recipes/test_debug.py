from elastic.profile.flops import count_image
from elastic.recipes.debug import debug
from elastic.recipes.icons import icons
from elastic.train.preparation import check_data


def test_it_runs_on_the_bundled_icons():
    assert check_data(debug()).num_classes > 1000


def test_it_is_a_hundred_times_cheaper_than_the_real_run():
    small, real = debug().model, icons().model
    assert count_image(small, small.space.full).flops * 100 < count_image(real, real.space.full).flops
    assert debug().steps * 50 <= icons().steps
