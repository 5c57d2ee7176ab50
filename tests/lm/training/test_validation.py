"""Scores of held-out text against loops."""

import pytest
import torch

from elastic.lm.training.validation import measure
from elastic.model.decoder import Decoder


@pytest.fixture
def decoder(config) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config.decoder)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return decoder


def test_scores_are_means_over_every_predicted_token(config, decoder, tokens):
    full, smallest = config.decoder.space.full, config.decoder.space.smallest
    scores = measure(decoder, [tokens[:3], tokens[3:]], (smallest, full))
    nats, same, kl, count = 0.0, 0, 0.0, 0
    with torch.no_grad():
        for block in tokens:
            small, large = (decoder(block[None, :-1], s)[0].log_softmax(-1).double() for s in (smallest, full))
            for position, token in enumerate(block[1:]):
                nats -= small[position, token].item()
                same += int(small[position].argmax() == large[position].argmax())
                kl += (large[position].exp() * (large[position] - small[position])).sum().item()
                count += 1
    assert scores[smallest].nats == pytest.approx(nats / count, rel=1e-5)
    assert scores[smallest].agreement == pytest.approx(same / count)
    assert scores[smallest].kl == pytest.approx(kl / count, rel=1e-4)


def test_the_full_model_agrees_with_itself(config, decoder, tokens):
    full = config.decoder.space.full
    scores = measure(decoder, [tokens], (full,))[full]
    assert scores.agreement == 1 and scores.kl == pytest.approx(0, abs=1e-6)
