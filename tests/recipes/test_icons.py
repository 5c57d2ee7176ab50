from dataclasses import replace

from elastic.recipes.icons import icons, icons_demo
from elastic.train.preparation import check_data


def test_the_bundled_icons_feed_every_objective():
    catalog = check_data(icons())
    assert len(catalog.domains) == 12
    assert catalog.num_classes > 1000


def test_the_demo_is_the_same_run_cut_short():
    full, demo = icons(), icons_demo()
    assert demo.steps < full.steps
    same = replace(demo, name=full.name, steps=full.steps, optim=full.optim)
    assert same == full


def test_every_objective_trains_every_width_of_the_model():
    config = icons()
    assert all(objective.embed_dims == config.model.embed_dims for objective in config.objectives.values())
