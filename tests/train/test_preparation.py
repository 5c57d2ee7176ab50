import csv
import shutil
from dataclasses import replace

import pytest

from elastic.data.config import Shuffled
from elastic.errors import ConfigError, DataError
from elastic.objectives.contrastive import ImageText
from elastic.objectives.matryoshka import Matryoshka
from elastic.train.balance import Balancing
from elastic.train.preparation import (
    balanced_streams,
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


@pytest.fixture
def unlabelled(drawings, tmp_path):
    """The drawings with captions alone."""
    folder = shutil.copytree(drawings, tmp_path / "unlabelled")
    with (folder / "metadata.csv").open(newline="") as file:
        rows = [(row["file_name"], row["caption"]) for row in csv.DictReader(file)]
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption"), *rows])
    return str(folder)


def balanced(config, *streams):
    return replace(config, balancing=Balancing(term="classes/ce"), data=replace(config.data, streams=streams))


def test_streams_in_use_that_feed_the_objective_are_balanced(drawings_config, unlabelled):
    one = drawings_config.data.streams[0]
    captions = replace(one, name="captions", source=unlabelled, sampling=Shuffled(batch_size=8))
    unused, other = replace(one, name="unused", weight=0.0), replace(one, name="other")
    config = balanced(drawings_config, one, captions, unused, other)
    assert balanced_streams(config, check_data(config)) == (0, 3)
    assert feed_config(config, None, {}).is_adaptive
    with pytest.raises(ConfigError, match="needs two streams or more that feed 'classes', found 1"):
        check_data(balanced(drawings_config, one, captions))


def test_without_balancing_the_feed_is_not_adaptive(drawings_config):
    assert balanced_streams(drawings_config, check_data(drawings_config)) == ()
    assert not feed_config(drawings_config, None, {}).is_adaptive
