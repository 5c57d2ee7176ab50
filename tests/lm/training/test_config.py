"""Contradictions are found before anything starts."""

from dataclasses import replace

import pytest

from elastic.errors import ConfigError
from elastic.lm.training.config import MatlmConfig
from elastic.train.submodels import SubmodelSampling


def test_a_config_that_fits_together_is_accepted(config):
    assert isinstance(config, MatlmConfig)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"name": "a/b"}, "name"),
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
        ({"log_every": 4}, "checkpoint_every"),
        ({"validate_every": 3, "log_every": 2}, "validate_every"),
        ({"distillation": 1.5}, "distillation"),
        ({"submodels": SubmodelSampling(policy="sample")}, "submodels.policy"),
        ({"submodels": SubmodelSampling(policy="anchored", k=4)}, "submodels.k"),
        ({"num_workers": 3}, "text.batch_size"),
    ],
)
def test_a_field_that_breaks_a_rule_is_named(config, changes, field):
    with pytest.raises(ConfigError) as raised:
        replace(config, **changes)
    assert raised.value.field == field


def test_sampling_one_size_a_step_is_accepted_without_distillation(config):
    assert replace(config, submodels=SubmodelSampling(policy="sample"), distillation=0.0).distillation == 0


def test_blocks_longer_than_the_decoder_reads_are_refused(config):
    with pytest.raises(ConfigError, match=r"text\.block_size=17"):
        replace(config, text=replace(config.text, block_size=17))


def test_another_vocabulary_than_the_texts_is_refused_unless_a_tokenizer_brings_its_own(config):
    decoder = replace(config.decoder, vocab_size=400)
    with pytest.raises(ConfigError, match="vocab_size=400"):
        replace(config, decoder=decoder)
    assert replace(config, decoder=decoder, text=replace(config.text, tokenizer="t.json")).decoder == decoder


def test_what_is_for_image_towers_is_refused(config):
    with pytest.raises(ConfigError, match="image towers"):
        replace(config, optim=replace(config.optim, encoder_rate=0.1))
