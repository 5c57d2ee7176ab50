"""The decoder against transformers' Llama, its cache against no cache, its submodels against plain smaller models."""

from dataclasses import replace

import pytest
import torch
import transformers
from torch import nn

from elastic.errors import ConfigError, InvalidRequest
from elastic.model.decoder import Decoder, DecoderConfig, RopeScaling, parameters_by_part, stretch
from elastic.submodel import Submodel

CONFIG = DecoderConfig(
    vocab_size=50, width=32, depth=3, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dims=(16, 32, 64, 128), max_tokens=64
)
MIXED = Submodel((16, 64, 128))


def build(config: DecoderConfig = CONFIG) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config).eval()
    for parameter in decoder.parameters():  # larger than at the start, so that a mistake shows in the logits
        nn.init.normal_(parameter, std=0.3)
    return decoder


def draw(batch: int, length: int) -> torch.Tensor:
    return torch.randint(CONFIG.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def llama(config: DecoderConfig, ffn_dim: int) -> nn.Module:
    rope = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_tokens,
        }
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=ffn_dim,
            max_position_embeddings=config.max_tokens,
            rms_norm_eps=config.norm_eps,
            rope_parameters=rope,
            tie_word_embeddings=config.tied,
            attention_bias=config.attention_bias,
            mlp_bias=config.mlp_bias,
        )
    ).eval()


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, tied=False, num_kv_heads=4),
        replace(CONFIG, attention_bias=True, mlp_bias=True, rope_theta=5e5),
        replace(
            CONFIG,
            rope_scaling=RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_tokens=16),
        ),
    ],
    ids=["tied", "untied", "biased", "stretched"],
)
def test_the_full_model_is_transformers_llama(config: DecoderConfig):
    decoder, reference, tokens = build(config), llama(config, config.ffn_dims[-1]), draw(2, 40)
    reference.load_state_dict(decoder.state_dict())
    with torch.no_grad():
        difference = decoder(tokens, decoder.space.full) - reference(tokens).logits
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize("ffn_dim", CONFIG.ffn_dims[:-1])
def test_a_submodel_is_the_llama_made_of_the_first_units(ffn_dim: int):
    decoder, reference, tokens = build(), llama(CONFIG, ffn_dim), draw(2, 10)
    weights = decoder.state_dict()
    for name, tensor in weights.items():
        if ".gate_proj." in name or ".up_proj." in name:
            weights[name] = tensor[:ffn_dim]
        elif ".down_proj." in name:
            weights[name] = tensor[:, :ffn_dim]
    reference.load_state_dict(weights)
    with torch.no_grad():
        difference = decoder(tokens, decoder.space.uniform(ffn_dim)) - reference(tokens).logits
    assert difference.abs().max() < 1e-5


def test_units_beyond_a_submodel_get_no_gradient():
    decoder = build()
    decoder(draw(1, 6), MIXED).sum().backward()
    for layer, ffn_dim in enumerate(MIXED.ffn_dims):
        mlp = decoder.model.layers[layer].mlp
        for rows in (mlp.gate_proj.weight.grad, mlp.up_proj.weight.grad, mlp.down_proj.weight.grad.T):
            assert rows[:ffn_dim].abs().sum(1).min() > 0
            assert rows[ffn_dim:].abs().sum() == 0


@pytest.mark.parametrize("parts", [(1,) * 12, (5, 1, 6), (12,)])
def test_reading_in_parts_gives_the_same_logits(parts: tuple[int, ...]):
    decoder, tokens = build(), draw(2, 12)
    cache = decoder.new_cache(batch=2)
    with torch.no_grad():
        whole = decoder(tokens, MIXED)
        pieces = [decoder(part, MIXED, cache) for part in tokens.split(list(parts), dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-5)
    assert cache.lengths == [12, 12]


def test_ragged_sequences_are_read_as_if_alone():
    decoder, tokens, lengths = build(), draw(3, 9), (9, 4, 6)
    with torch.no_grad():
        cache = decoder.new_cache(batch=3)
        decoder(tokens, MIXED, cache)
        cache.rewind(lengths)
        together = decoder(tokens[:, :2], MIXED, cache)
        for row, length in enumerate(lengths):
            alone = decoder(torch.cat([tokens[row, :length], tokens[row, :2]])[None], MIXED)
            torch.testing.assert_close(together[row], alone[0, -2:], rtol=0, atol=1e-5)


def test_what_stands_behind_a_sequence_is_never_read():
    decoder, tokens = build(), draw(1, 8)
    clean, dirty = decoder.new_cache(), decoder.new_cache()
    dirty.keys.fill_(torch.nan)
    dirty.values.fill_(torch.nan)
    with torch.no_grad():
        logits = [
            torch.cat([decoder(tokens[:, :5], MIXED, cache), decoder(tokens[:, 5:], MIXED, cache)], dim=1)
            for cache in (clean, dirty)
        ]
    assert torch.equal(*logits)


def test_blocks_can_be_run_in_spans():
    decoder, tokens = build(), draw(2, 5)
    with torch.no_grad():
        hidden = decoder.run(decoder.embed(tokens), MIXED, layers=range(2))
        logits = decoder.logits(decoder.run(hidden, MIXED, layers=[2]))
    assert torch.equal(logits, decoder(tokens, MIXED))


def test_more_tokens_than_slots_are_refused():
    decoder = build()
    with pytest.raises(InvalidRequest, match="do not fit"):
        decoder(draw(1, 5), MIXED, decoder.new_cache(num_slots=4))


def test_long_wavelengths_are_stretched_and_short_ones_are_not():
    scaling = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_tokens=100)
    frequencies = 2 * torch.pi / torch.tensor([10.0, 40.0, 1000.0])  # by wavelength: short, between, long
    kept, blended, divided = (stretch(frequencies, scaling) / frequencies).tolist()
    assert kept == pytest.approx(1)
    assert divided == pytest.approx(1 / 8)
    assert blended == pytest.approx(0.5 + 0.5 / 8)  # (100/40 - 1) / (4 - 1) = 0.5


def test_parameters_are_those_of_the_module():
    decoder, config = build(replace(CONFIG, tied=False)), replace(CONFIG, tied=False)
    matrices = sum(p.numel() for p in decoder.parameters() if p.ndim == 2)
    assert sum(parameters_by_part(config, config.space.full).values()) == matrices
    assert parameters_by_part(config, MIXED)["ffn"] == 3 * 32 * (16 + 64 + 128)


@pytest.mark.parametrize(
    ("field", "value"), [("num_kv_heads", 3), ("head_dim", 7), ("vocab_size", 0), ("ffn_dims", (64, 32))]
)
def test_sizes_that_do_not_fit_are_refused(field: str, value: object):
    with pytest.raises(ConfigError, match=field):
        replace(CONFIG, **{field: value})


@pytest.mark.gpu
def test_a_gpu_computes_the_same_logits_and_reads_its_cache():
    decoder, tokens = build(), draw(2, 12)
    with torch.no_grad():
        expected = decoder(tokens, MIXED)
        decoder.cuda()
        cache = decoder.new_cache(batch=2)
        parts = [decoder(part, MIXED, cache) for part in tokens.cuda().split([7, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1).cpu(), expected, rtol=0, atol=1e-3)
