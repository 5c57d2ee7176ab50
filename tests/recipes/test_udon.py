from dataclasses import replace

from elastic.data.plan import shares
from elastic.recipes.icons import icons
from elastic.recipes.udon import DOMAINS, udon, udon_by_size, udon_in_turns
from elastic.train.preparation import balanced_streams, check_data


def test_every_domain_of_the_bundled_icons_is_a_stream_that_feeds_the_objective():
    config = udon()
    catalog = check_data(config)
    assert catalog.domains == DOMAINS
    assert [set(rows.domains.tolist()) for rows in catalog.streams] == [{place} for place in range(12)]
    assert balanced_streams(config, catalog) == tuple(range(12))


def test_the_classes_are_those_of_icons():
    assert check_data(udon()).classes == check_data(icons()).classes


def test_the_image_tower_is_that_of_icons_and_learns_at_the_full_rate():
    config = udon()
    assert config.model == replace(icons().model, text=None)
    assert (config.optim.encoder_rate, config.optim.freeze_encoder) == (1.0, 0.0)


def test_weighted_by_size_is_the_same_run_but_for_its_streams_weights():
    dynamic, sized = udon(), udon_by_size()
    assert replace(sized, name="udon", data=dynamic.data, balancing=dynamic.balancing) == dynamic
    sizes = {stream.name: int(stream.weight) for stream in sized.data.streams}
    assert sizes == {rows.name: len(rows) for rows in check_data(sized).streams}
    assert max(sizes, key=sizes.get) == "flags" and sum(shares(sized.data.weights, 200)) == 200


def test_in_turns_is_the_same_run_but_for_the_order_of_its_streams():
    dynamic, turns = udon(), udon_in_turns()
    assert turns.data.order == "round_robin" and turns.balancing is None
    assert replace(turns, name="udon", data=dynamic.data, balancing=dynamic.balancing) == dynamic
    check_data(turns)
