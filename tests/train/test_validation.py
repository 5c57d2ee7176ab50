from dataclasses import replace

import pytest
import torch

from elastic.errors import DataError
from elastic.model.config import Preprocess
from elastic.model.encoder import Encoder
from elastic.train.preparation import check_data
from elastic.train.validation import Validation


def test_every_granularity_gets_a_recall_on_held_out_classes(config):
    torch.manual_seed(0)
    encoder = Encoder(config.model).eval()
    measured = Validation("icons", Preprocess(image_size=16)).measure(encoder)
    assert list(measured) == [f"val/recall_at_1/{name}" for name in ("S", "M", "L", "XL")]
    # An untrained network sees colour and shape: worse than useful, better than chance.
    assert all(0.005 < recall < 0.6 for recall in measured.values())


def test_measuring_uses_no_random_numbers(config):
    encoder = Encoder(config.model).eval()
    validation = Validation("icons", Preprocess(image_size=16))
    before = torch.get_rng_state()
    first = validation.measure(encoder)
    assert torch.equal(torch.get_rng_state(), before)
    assert validation.measure(encoder) == first


def test_a_source_without_validation_rows_is_refused_before_the_first_step(drawings_config):
    with pytest.raises(DataError, match="val"):
        check_data(replace(drawings_config, validate_every=1))
