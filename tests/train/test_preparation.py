from dataclasses import replace

import pytest

from elastic.errors import ConfigError, DataError
from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.train.preparation import (
    carried_fields,
    check_data,
    dimensions,
    feed_config,
    make_tokenizer,
    preprocess,
)


def test_data_that_feeds_every_objective_is_accepted(drawings_config):
    catalog = check_data(drawings_config)
    assert (catalog.num_classes, catalog.domains) == (8, ("default",))
    assert dimensions(drawings_config, catalog).num_classes == 8


def test_captions_need_a_text_tower(drawings_config):
    silent = replace(drawings_config, model=replace(drawings_config.model, text=None))
    with pytest.raises(ConfigError, match=r"objectives\.captions.*captions"):
        check_data(silent)


def test_without_a_text_tower_no_stream_carries_text(drawings_config):
    catalog = check_data(drawings_config)
    silent = replace(drawings_config, model=replace(drawings_config.model, text=None))
    assert carried_fields(drawings_config, catalog)[0] - carried_fields(silent, catalog)[0] == {"captions"}


def test_an_objective_of_other_widths_is_found_before_the_first_step(drawings_config):
    narrow = Matryoshka(inner=ImageText(), embed_dims=(2, 4))
    with pytest.raises(ConfigError, match="embed_dims"):
        check_data(replace(drawings_config, objectives={"captions": narrow}))


def test_missing_data_is_found_before_the_first_step(drawings_config):
    with pytest.raises(DataError):
        check_data(replace(drawings_config, data=replace(drawings_config.data, split="val")))


def test_the_same_captions_give_the_same_tokenizer_within_the_vocabulary(drawings_config):
    catalog = check_data(drawings_config)
    first, second = make_tokenizer(drawings_config, catalog), make_tokenizer(drawings_config, catalog)
    assert first.to_json() == second.to_json()
    assert first.vocab_size <= drawings_config.model.text.vocab_size


def test_a_vocabulary_too_small_for_the_letters_of_the_captions_is_refused(drawings_config):
    cramped = replace(drawings_config.model, text=replace(drawings_config.model.text, vocab_size=4))
    with pytest.raises(ConfigError, match=r"model\.text\.vocab_size=4: must be at least \d\d"):
        make_tokenizer(replace(drawings_config, model=cramped), check_data(drawings_config))


def test_without_a_text_tower_there_is_no_tokenizer(drawings_config):
    catalog = check_data(drawings_config)
    assert make_tokenizer(replace(drawings_config, model=replace(drawings_config.model, text=None)), catalog) is None


def test_the_feed_is_opened_with_the_seed_and_text_length_of_the_run(drawings_config):
    config = replace(drawings_config, seed=5)
    opened = feed_config(config, None, {2: (1.0,)})
    assert (opened.seed, opened.max_tokens, opened.weights) == (5, 6, {2: (1.0,)})
    assert opened.preprocess == preprocess(config)
