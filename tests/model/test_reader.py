"""Readers against the decoder that they read from: same logits, same keys and values, fewer of both where asked."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from elastic.errors import InvalidRequest
from elastic.model.decoder import Decoder, DecoderConfig, RopeScaling
from elastic.model.reader import Reader, project_few
from elastic.submodel import Submodel

CONFIG = DecoderConfig(
    vocab_size=50, width=32, depth=3, num_heads=4, num_kv_heads=4, head_dim=8, ffn_dims=(16, 32, 64, 128), max_tokens=64
)
MIXED = Submodel((16, 64, 128))
STRETCHED = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_tokens=16)


def build(config: DecoderConfig = CONFIG) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder


def draw(batch: int, length: int) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, num_kv_heads=2),
        replace(CONFIG, num_kv_heads=1, tied=False),
        replace(CONFIG, attention_bias=True, mlp_bias=True),
        replace(CONFIG, rope_scaling=STRETCHED),
    ],
    ids=["plain", "grouped", "untied", "biased", "stretched"],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_reader_gives_the_decoder_s_logits(config: DecoderConfig, batch: int):
    decoder, tokens = build(config), draw(batch, 12)
    reader, cache = Reader(decoder, MIXED), decoder.new_cache(batch)
    with torch.inference_mode():
        expected, found = decoder(tokens, MIXED), []
        for part in tokens.split([5, 1, 1, 3, 2], dim=1):
            found.append(reader(part, cache))
            cache.advance(part.shape[1])
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("count", [1, 3])
def test_ragged_sequences_are_read_and_written_as_the_decoder_does(count: int, num_kv_heads: int):
    decoder, tokens = build(replace(CONFIG, num_kv_heads=num_kv_heads)), draw(3, 9)
    reader, caches = Reader(decoder, MIXED), [decoder.new_cache(3) for _ in range(2)]
    with torch.inference_mode():
        for cache in caches:
            decoder(tokens, MIXED, cache)
            cache.rewind([9, 4, 6])
        expected = decoder.logits(decoder.run(decoder.embed(tokens[:, :count]), MIXED, caches[0]))
        found = reader(tokens[:, :count], caches[1])
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(caches[1].keys, caches[0].keys, rtol=0, atol=1e-5)
    torch.testing.assert_close(caches[1].values, caches[0].values, rtol=0, atol=1e-5)
    assert caches[1].lengths == [9, 4, 6], "lengths are left to the caller"


def test_blocks_can_be_read_in_spans_or_left_out():
    decoder, tokens = build(), draw(2, 5)
    first = Reader(decoder, MIXED, [0], scores=False)
    last = Reader(decoder, MIXED, [2], embeds=False)
    cache = decoder.new_cache(2)
    with torch.inference_mode():
        expected = decoder.logits(decoder.run(decoder.embed(tokens), MIXED, layers=[0, 2]))
        found = last(first(tokens, cache), cache)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert cache.keys[1].abs().sum() == 0, "a block that is left out writes nothing"


def test_a_part_of_the_vocabulary_gets_its_own_logits():
    decoder, tokens = build(), draw(1, 4)
    words = torch.tensor([7, 3, 40])
    with torch.inference_mode():
        found = Reader(decoder, MIXED, vocabulary=words)(tokens, decoder.new_cache())
        torch.testing.assert_close(found, decoder(tokens, MIXED)[..., words], rtol=0, atol=2e-5)


def test_weights_are_shared_with_the_decoder():
    decoder, tokens = build(), draw(1, 4)
    reader = Reader(decoder, MIXED)
    with torch.inference_mode():
        before = reader(tokens, decoder.new_cache())
    with torch.no_grad():
        decoder.model.layers[1].mlp.down_proj.weight.mul_(2)
    with torch.inference_mode():
        after = reader(tokens, decoder.new_cache())
        torch.testing.assert_close(after, decoder(tokens, MIXED), rtol=0, atol=2e-5)
    assert (after - before).abs().max() > 1e-3


def test_more_tokens_than_slots_are_refused():
    decoder = build()
    with pytest.raises(InvalidRequest, match="do not fit"), torch.inference_mode():
        Reader(decoder, MIXED)(draw(1, 5), decoder.new_cache(num_slots=4))


@pytest.mark.parametrize(("rows", "columns"), [(32, 8), (8, 8), (8, 32)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_few_tokens_meet_a_weight_as_in_a_linear_layer(rows: int, columns: int, has_bias: bool):
    weight, bias, x = torch.randn(rows, columns), torch.randn(rows) if has_bias else None, torch.randn(2, 3, columns)
    torch.testing.assert_close(project_few(x, weight, bias), nn.functional.linear(x, weight, bias), rtol=0, atol=1e-5)
